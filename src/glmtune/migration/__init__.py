"""What the past left behind -> what works here: scripts and configurations, adapters and checkpoints."""

from pathlib import Path

from glmtune.errors import CheckpointError, ConfigError
from glmtune.files import WEIGHT_SUFFIXES, given_path, is_there
from glmtune.migration.configs import is_config
from glmtune.migration.recipes import YAML, migrate_files
from glmtune.migration.report import Migration
from glmtune.migration.scripts import starts_program

__all__ = ["Migration", "migrate"]

NOT_KNOWN = "a script that starts none of the official programs: left alone"
WEIGHTS = (*WEIGHT_SUFFIXES, ".pt", ".pth")


def migrate_path(
    source: str | Path,
    output: str | Path | None = None,
    *,
    base: str | Path | None = None,
    template: str | None = None,
) -> list[Migration]:
    """Tell what `source` is and write it as ours to the new `output`; nothing is overwritten or run.

    A script or configuration (or a folder of them) gives recipes, a PEFT LoRA folder or a P-Tuning checkpoint
    one adapter folder; `base` is the model it goes on, `template` its chat format where its folder does not
    tell. Raises GlmtuneError's children for what cannot be carried over as it is.
    """
    path, target = given_path(source), None if output is None else given_path(output)
    if not is_there(path):
        raise ConfigError(f"{path}: no such file or folder", hint="give a script, a YAML file or a folder")
    files = _scripts(path)
    known = [file for file in files if file.suffix in YAML or starts_program(file)]
    if files:
        other = [Migration(source=str(file), found=[NOT_KNOWN]) for file in files if file not in known]
        named = None if base is None else str(base)
        return migrate_files(known or files, target, named) + (other if known else [])
    folder = path if path.is_dir() else path.parent
    checkpoints = sorted((p.name for p in folder.glob("checkpoint-*") if p.is_dir()), key=_step)
    if checkpoints and not any(p.suffix in WEIGHTS for p in folder.iterdir()):
        raise CheckpointError(
            f"{folder}: holds {', '.join(checkpoints)}", hint=f"choose one: {folder / checkpoints[-1]}"
        )
    from glmtune.migration.weights import migrate_weights

    return [migrate_weights(folder, target, base=base, template=template)]


def _scripts(path: Path) -> list[Path]:
    """The scripts and configurations that a path means; none where it is a folder of weights."""
    if not path.is_dir():
        return [] if path.suffix in WEIGHTS else [path]
    if any(p.suffix in WEIGHTS for p in path.iterdir()):
        return []
    scripts = sorted(path.glob("*.sh"))
    return scripts + sorted(p for p in path.iterdir() if p.suffix in YAML and is_config(p))


def _step(name: str) -> int:
    number = name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
