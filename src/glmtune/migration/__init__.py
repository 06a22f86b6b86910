"""Migrate scripts, configurations and checkpoints of the official programs, and adapters of PEFT."""

from pathlib import Path

from glmtune.errors import CheckpointError, ConfigError
from glmtune.files import WEIGHT_SUFFIXES, given_path, is_there
from glmtune.migration.configs import is_config
from glmtune.migration.recipes import YAML, migrate_files
from glmtune.migration.report import Migration
from glmtune.migration.scripts import starts_program

__all__ = ["Migration", "migrate_path"]

# shown as what was found in a script, never as an error: a folder may hold scripts of any kind
NOT_KNOWN = "a script that starts none of the official programs: left alone"
WEIGHTS = (*WEIGHT_SUFFIXES, ".pt", ".pth")


def migrate_path(
    source: str | Path,
    output: str | Path | None = None,
    *,
    base: str | Path | None = None,
    template: str | None = None,
) -> list[Migration]:
    """Migrate a script, a configuration, a folder of either, a PEFT LoRA folder or a P-Tuning checkpoint.

    Scripts and configurations become recipes, weights an adapter folder, written to the new `output`; nothing
    is overwritten or run. `base` is the base model, `template` its chat format if its folder does not tell.
    Raises a GlmtuneError for a source that cannot be migrated without changing its meaning.
    """
    path, target = given_path(source), None if output is None else given_path(output)
    if not is_there(path):
        raise ConfigError(f"{path}: no such file or folder", hint="give a script, a YAML file or a folder")
    # a folder with weights is an adapter or a checkpoint, whatever scripts lie in it
    has_weights = path.is_dir() and any(p.suffix in WEIGHTS for p in path.iterdir())
    files: list[Path] = []
    if not path.is_dir():
        files = [] if path.suffix in WEIGHTS else [path]
    elif not has_weights:
        files = sorted(path.glob("*.sh"))
        files += sorted(p for p in path.iterdir() if p.suffix in YAML and is_config(p))
    known = [file for file in files if file.suffix in YAML or starts_program(file)]
    if files:
        other = [Migration(source=str(file), found=[NOT_KNOWN]) for file in files if file not in known]
        # without any known script migrate_files raises the error that names the known programs
        return migrate_files(known or files, target, None if base is None else str(base)) + (
            other if known else []
        )
    folder = path if path.is_dir() else path.parent
    checkpoints = sorted((p.name for p in folder.glob("checkpoint-*") if p.is_dir()), key=_step_of)
    if checkpoints and not any(p.suffix in WEIGHTS for p in folder.iterdir()):
        raise CheckpointError(
            f"{folder}: holds {', '.join(checkpoints)}", hint=f"choose one: {folder / checkpoints[-1]}"
        )
    from glmtune.migration.weights import migrate_weights  # here, as it loads torch

    return [migrate_weights(folder, target, base=base, template=template)]


def _step_of(name: str) -> int:
    number = name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
