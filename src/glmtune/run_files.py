"""The files of a run, written so that a crash or a full disk loses nothing that was there before."""

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from glmtune.charset import NotTextError, decode_text
from glmtune.errors import CheckpointError, ConfigError, OutputError
from glmtune.files import is_there, parse_json_object, read_bytes

RECIPE_FILE = "recipe.yaml"
ENVIRONMENT_FILE = "env.json"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
RESULT_FILE = "eval.json"
"""Written when a training has come to its end."""
SCORES_FILE = "scores.json"
SETTINGS_FILE = "settings.json"
"""What the answers beside it depend on."""

STEP_NAME = re.compile(r"step-(\d{6,})")
"""Name of a checkpoint's folder; from step 1,000,000 on it is longer."""
CUT_LINE = "the file is damaged: take this line out, or copy the file again"
LONGEST_KEPT_NAME = 200
"""Bytes of a name that a temporary one is still made of."""
LONGEST_LINK = 1024
"""Bytes in the file that stands for a link on Windows, at most."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it there at the end, remove it on any failure.

    Works for a file and for a folder. A failing disk becomes an `OutputError` naming `path`.
    """
    partial = _aside(path)
    try:
        _remove(partial)
        yield partial
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        partial.replace(path)
    except (OSError, SafetensorError) as err:  # the latter: what its writer makes of a failing disk
        _remove(partial)
        raise cannot_write(path, err) from err
    except BaseException:
        _remove(partial)
        raise


def _aside(path: Path, mark: str = "") -> Path:
    """A temporary name beside a path; of a name so long that no more fits into one, its hash."""
    name = os.fsencode(path.name)
    short = path.name if len(name) <= LONGEST_KEPT_NAME else hashlib.sha256(name).hexdigest()
    return path.with_name(f".{short}{mark}.partial")


def remove_folder(path: Path) -> None:
    """Delete a folder, or a link to one; if that is cut short, nothing is left under its name.

    Raises `OutputError`.
    """
    gone = _aside(path, ".gone")
    try:
        _remove(gone)
        path.rename(gone)
        _remove(gone)
    except OSError as err:
        raise cannot_write(path, err) from err


def is_partial(path: Path) -> bool:
    """Whether this is what a killed process has left half-written or half-deleted."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def sweep(folder: Path) -> None:
    """Delete the files and folders in a folder that `is_partial` tells of. Raises `OutputError`."""
    try:
        for path in filter(is_partial, folder.iterdir() if folder.is_dir() else ()):
            _remove(path)
    except OSError as err:
        raise cannot_write(folder, err) from err


def cannot_write(path: Path, err: OSError | SafetensorError) -> OutputError:
    """The error for a write that failed."""
    reason = getattr(err, "strerror", None) or str(err)
    return OutputError(f"{path}: cannot be written: {reason}", hint="check free space and permissions there")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, in place of an older one only when complete."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, readable."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def append_json(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON line."""
    try:
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(value, ensure_ascii=False) + "\n")
    except OSError as err:
        raise cannot_write(path, err) from err


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file of ours; none where it is not there.

    A half-written last line is left out. Raises `CheckpointError` with the line that is damaged, or does not
    hold what `contents` says.
    """
    if not path.exists():
        return []
    content = read_bytes(path, limit=None)
    whole = content[: content.rfind(b"\n") + 1]
    try:
        lines = decode_text(whole, str(path)).split("\n")
    except NotTextError as err:
        raise CheckpointError(f"{path}:{err.line}: {err}", hint=CUT_LINE) from None
    return [
        parse_json_object(line, path, is_ours=True, line=number, hint=CUT_LINE)
        for number, line in enumerate(lines, start=1)
        if line
    ]


def link(path: Path, target: Path) -> None:
    """Point `path` at its sibling folder `target`, in one step: a symbolic link.

    Windows lets few users make those: there it is a text file with the relative path. `follow` reads both.
    """
    relative = Path(os.path.relpath(target, path.parent)).as_posix()
    with replacing(path) as partial:
        if sys.platform == "win32":
            partial.write_text(relative, encoding="utf-8")
        else:
            partial.symlink_to(relative, target_is_directory=True)


def follow(path: Path) -> Path:
    """The folder that `link` pointed a path at; any other path as it is."""
    if path.is_file() and path.stat().st_size < LONGEST_LINK:
        target = path.parent / path.read_bytes().decode("utf-8", errors="replace").replace("\\", "/")
        return target.resolve() if is_there(target) and target.is_dir() else path
    return Path(os.path.realpath(path)) if path.is_symlink() else path  # resolve() fails for one to itself


def find_checkpoint(run: Path, name: str) -> Path | None:
    """The checkpoint that a run's link `best` or `last` leads to, None where the run has no such link.

    Raises `CheckpointError` for a link to a checkpoint that is gone.
    """
    link = run / name
    if not (link.is_symlink() or link.exists()):
        return None
    folder = follow(link)
    if folder.is_dir():
        return folder
    there = ", ".join(str(path) for path in list_checkpoints(run)) or "none is left"
    other = f"open another by its own name: {there}" if name == "best" else f"delete the link {link}"
    raise CheckpointError(
        f"{link}: leads to no checkpoint: {folder if link.is_symlink() else 'what it names'} is not there",
        hint=f"put that checkpoint back, or {other}",
    )


def going_on(checkpoint: Path) -> str:
    """The hint of a checkpoint whose optimizer is lost, and whose weights are not."""
    command = f"glmtune train model={shlex.quote(str(checkpoint))} data.train=FILE output=NEW"
    return f"take the whole folder from a copy, or train on from its weights: `{command}`"


def last_checkpoint(run: Path) -> Path | None:
    """The checkpoint that a run goes on from: `last`, or the newest where that link is lost or was not made.

    Raises `CheckpointError` as `find_checkpoint`.
    """
    return find_checkpoint(run, "last") or next(reversed(list_checkpoints(run)), None)


def list_checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, by their steps."""
    steps = {step_of(path): path for path in (run / "checkpoints").glob("step-*") if path.is_dir()}
    return [steps[step] for step in sorted(step for step in steps if step is not None)]


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint folder's name, `step-000010`; None for another name."""
    found = STEP_NAME.fullmatch(checkpoint.name)
    return int(found[1]) if found else None


def require_new(path: Path, *, hint: str) -> None:
    """Raise `ConfigError` unless a folder can be begun here: the path is free, or an empty folder."""
    for parent in (path, *path.parents):
        if parent.exists() and not parent.is_dir():
            raise ConfigError(
                f"{path}: {parent} is a file, not a folder", hint="name another folder: output=..."
            )
    if path.exists() and not all(map(is_partial, path.iterdir())):
        raise ConfigError(f"{path}: this folder is not empty and will not be overwritten", hint=hint)


def free_folder(path: Path) -> Path:
    """The path, or the first of `path-2`, `path-3`, ... that is free or an empty folder."""
    number, folder = 1, path
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = path.with_name(f"{path.name}-{number}")
    return folder


def make_folder(path: Path) -> None:
    """Create a folder and those above it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise cannot_write(path, err) from err


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
