"""Drafts -> recipe files, and the commands that run them."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from glmtune.errors import ConfigError
from glmtune.files import is_there
from glmtune.migration.configs import draft_config
from glmtune.migration.draft import RecipeDraft
from glmtune.migration.report import Migration
from glmtune.migration.scripts import read_script
from glmtune.run_files import make_folder, write_text

YAML = (".yaml", ".yml")
_TYPED = {"model": "MODEL", "data.train": "FILE", "data.validation": "FILE", "data.test": "FILE"}


def migrate_files(files: Sequence[Path], output: Path | None, base: str | None = None) -> list[Migration]:
    """A recipe for each program that these scripts and configurations start.

    `output` is a folder, or for one recipe a file. Nothing is written unless everything can be, and
    nothing is overwritten. Raises ConfigError.
    """
    drafts = [draft for path in files for draft in _drafts(path, base)]
    for draft in drafts:
        draft.check()
    targets = _targets(drafts, output)
    texts = {}
    for draft, target in zip(drafts, targets, strict=True):
        draft.commands = commands(draft, target)
        if target is not None:
            draft.header += _header(draft)
            texts[target] = draft.to_text()
    for target, text in texts.items():
        make_folder(target.parent)
        write_text(target, text)
    return [_migration(draft, target) for draft, target in zip(drafts, targets, strict=True)]


def _drafts(path: Path, base: str | None) -> list[RecipeDraft]:
    return [draft_config(path, base)] if path.suffix in YAML else read_script(path, base)


def _targets(drafts: Sequence[RecipeDraft], output: Path | None) -> list[Path | None]:
    """Each draft's file, all of them free; a chat needs none."""
    written = [draft for draft in drafts if draft.verb != "chat"]
    if written and output is None:
        raise ConfigError("output: missing", hint="say where the recipe goes: output=recipes/mine.yaml")
    targets: list[Path | None] = []
    for draft in drafts:
        target = None
        if draft.verb != "chat" and output is not None:
            is_file = output.suffix in YAML and len(written) == 1
            target = output if is_file else _free_name(output, draft.name, targets)
            if target.exists():
                raise ConfigError(
                    f"{target}: is there already and will not be overwritten", hint="name another: output=..."
                )
        targets.append(target)
    return targets


def _free_name(folder: Path, name: str, taken: Sequence[Path | None]) -> Path:
    number, target = 1, folder / f"{name}.yaml"
    while target in taken:
        number += 1
        target = folder / f"{name}-{number}.yaml"
    return target


def _header(draft: RecipeDraft) -> list[str]:
    """What the file says of itself, above its settings."""
    lines = [f"Not carried over: {name} ({why})." for name, why in draft.lost.items()]
    if draft.dropped:
        lines.append(f"Not needed here: {', '.join(draft.dropped)}.")
    return lines


def commands(draft: RecipeDraft, target: Path | None) -> list[str]:
    """What to type."""
    cards = f"CUDA_VISIBLE_DEVICES={draft.devices} " if draft.devices else ""
    if draft.verb != "chat":
        open_words = " ".join(f"{key}={_TYPED[key]}" for key in draft.open)
        run = f"glmtune {draft.verb} {shlex.quote(str(target))} {open_words}".strip()
        first = _migrate_first(draft) if draft.verb == "evaluate" else []
        return [*first, f"{cards}{_torchrun(draft)}{run}"]
    asks = ["glmtune chat", _quoted(draft, "model")]
    if "base" in draft.settings:
        asks += ["--base", _quoted(draft, "base")]
    asks += ["--quant", draft.settings["quant"]] if "quant" in draft.settings else []
    return [*_migrate_first(draft), cards + " ".join(asks)]


def _quoted(draft: RecipeDraft, key: str) -> str:
    return shlex.quote(str(draft.settings.get(key, _TYPED.get(key))))


def _migrate_first(draft: RecipeDraft) -> list[str]:
    """An old checkpoint that is here can become an adapter that knows its base and format."""
    model = str(draft.settings.get("model", ""))
    if "base" not in draft.settings or not is_there(Path(model)):
        return []
    name = shlex.quote(f"adapters/{Path(model).parent.name}")
    return [f"glmtune migrate {_quoted(draft, 'model')} --base {_quoted(draft, 'base')} --output {name}"]


def _torchrun(draft: RecipeDraft) -> str:
    if draft.processes == 1:
        return ""
    per_node = draft.processes // draft.nodes
    nodes = "--standalone" if draft.nodes == 1 else f"--nnodes {draft.nodes} --rdzv-endpoint HOST:PORT"
    return f"torchrun {nodes} --nproc-per-node {per_node} -m "


def _migration(draft: RecipeDraft, target: Path | None) -> Migration:
    verbs = {"train": "a training", "evaluate": "an evaluation", "chat": "a chat"}
    settings = draft.settings
    method = settings.get("method")
    name = method if isinstance(method, str) else (method or {}).get("name", "")
    found = [f"{verbs[draft.verb]}{f' ({name})' if name else ''}"]
    if "train.batch_size" in settings:
        length = (
            f"{settings['train.steps']} steps"
            if "train.steps" in settings
            else (f"{settings['train.epochs']:g} epochs")
        )
        found[0] += (
            f": {length} of {settings['train.batch_size']} rows, learning rate {settings['train.lr']:g}"
        )
    found += [*draft.facts, *(f"{key} is open: {why}" for key, why in draft.open.items())]
    return Migration(
        source=draft.where,
        found=found,
        made=target,
        warnings=draft.warnings,
        mended=draft.mended,
        dropped=draft.dropped,
        lost=draft.lost,
        next=draft.commands,
    )
