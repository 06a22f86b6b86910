"""Write drafts as recipe files, with the commands that run them."""

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
# placeholders in a command, for settings that the user must fill in
_TYPED = {"model": "MODEL", "data.train": "FILE", "data.validation": "FILE", "data.test": "FILE"}


def migrate_files(files: Sequence[Path], output: Path | None, base: str | None = None) -> list[Migration]:
    """Write a recipe for each official program that the scripts and configurations start.

    `output` is a folder, or for a single recipe a file; a chat needs no recipe. Nothing is overwritten, and
    nothing is written unless all recipes can be. Raises ConfigError.
    """
    drafts: list[RecipeDraft] = []
    for path in files:
        drafts += [draft_config(path, base)] if path.suffix in YAML else read_script(path, base)
    for draft in drafts:
        draft.check()
    written = [draft for draft in drafts if draft.verb != "chat"]
    if written and output is None:
        raise ConfigError("output: missing", hint="say where the recipe goes: output=recipes/mine.yaml")
    # all targets before the first draft is changed: a refusal leaves the drafts as they were
    targets: list[Path | None] = []
    for draft in drafts:
        target = None
        if draft.verb != "chat" and output is not None:
            is_file = output.suffix in YAML and len(written) == 1
            target = output if is_file else _free_target(draft, output, targets)
            if target.exists():
                raise ConfigError(
                    f"{target}: is there already and will not be overwritten", hint="name another: output=..."
                )
        targets.append(target)
    texts: dict[Path, str] = {}
    for draft, target in zip(drafts, targets, strict=True):
        draft.commands = commands(draft, target)
        if target is not None:
            draft.header += [f"Not carried over: {name} ({why})." for name, why in draft.lost.items()]
            if draft.dropped:
                draft.header.append(f"Not needed here: {', '.join(draft.dropped)}.")
            texts[target] = draft.to_text()
    for target, text in texts.items():
        make_folder(target.parent)
        write_text(target, text)
    return [_report_recipe(draft, target) for draft, target in zip(drafts, targets, strict=True)]


def _free_target(draft: RecipeDraft, output: Path, taken: Sequence[Path | None]) -> Path:
    """Return the draft's file in the folder `output`, numbered if an earlier draft has taken its name."""
    target, number = output / f"{draft.name}.yaml", 1
    while target in taken:  # one script may start several programs
        number += 1
        target = output / f"{draft.name}-{number}.yaml"
    return target


def commands(draft: RecipeDraft, target: Path | None) -> list[str]:
    """Return the commands to type: a migration of old weights first, then the run, or chat and page."""
    cards = f"CUDA_VISIBLE_DEVICES={draft.devices} " if draft.devices else ""
    if draft.verb != "chat":
        open_words = " ".join(f"{key}={_TYPED[key]}" for key in draft.open)
        run = f"glmtune {draft.verb} {shlex.quote(str(target))} {open_words}".strip()
        first = _migrate_first(draft) if draft.verb == "evaluate" else []
        torchrun = ""
        if draft.processes != 1:
            per_node = draft.processes // draft.nodes
            nodes = (
                "--standalone" if draft.nodes == 1 else f"--nnodes {draft.nodes} --rdzv-endpoint HOST:PORT"
            )
            torchrun = f"torchrun {nodes} --nproc-per-node {per_node} -m "
        return [*first, f"{cards}{torchrun}{run}"]
    asked = [_quoted(draft, "model")]
    if "base" in draft.settings:
        asked += ["--base", _quoted(draft, "base")]
    asked += ["--quant", draft.settings["quant"]] if "quant" in draft.settings else []
    typed = [f"{cards}glmtune chat {' '.join(asked)}"]
    if draft.port:
        typed.append(f"{cards}glmtune web {' '.join(asked)} --port {shlex.quote(draft.port)}")
    return [*_migrate_first(draft), *typed]


def _quoted(draft: RecipeDraft, key: str) -> str:
    return shlex.quote(str(draft.settings.get(key, _TYPED.get(key))))


def _migrate_first(draft: RecipeDraft) -> list[str]:
    """Return the command that makes an adapter of an old checkpoint; nothing if there is none here."""
    model = str(draft.settings.get("model", ""))
    if "base" not in draft.settings or not is_there(Path(model)):
        return []
    name = shlex.quote(f"adapters/{Path(model).parent.name}")
    return [f"glmtune migrate {_quoted(draft, 'model')} --base {_quoted(draft, 'base')} --output {name}"]


def _report_recipe(draft: RecipeDraft, target: Path | None) -> Migration:
    # the first sentence: the verb, the method, the length of a training
    verbs = {"train": "a training", "evaluate": "an evaluation", "chat": "a chat"}
    settings = draft.settings
    method = settings.get("method")
    name = method if isinstance(method, str) else (method or {}).get("name", "")
    found = [f"{verbs[draft.verb]}{f' ({name})' if name else ''}"]
    if "train.batch_size" in settings:
        if "train.steps" in settings:
            length = f"{settings['train.steps']} steps"
        else:
            length = f"{settings['train.epochs']:g} epochs"
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
