"""The files of a run, written so that a crash or a full disk loses nothing that was there before."""

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from glmtune.charset import NotTextError, decode_text
from glmtune.errors import CheckpointError, ConfigError, OutputError
from glmtune.files import is_there, parse_json_object, read_bytes, show_size

RECIPE_FILE = "recipe.yaml"
ENVIRONMENT_FILE = "env.json"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
MEMORY_FILE = "memory.json"
DATA_FILE = "data.json"
RANKS_FILE = "ranks.jsonl"
FORGETTING_FILE = "forgetting.json"
REPLAY_FILE = "replay.jsonl"
REPORT_FILE = "report.html"
RESULT_FILE = "eval.json"
"""Written when a training run has ended; a run without it was stopped or is still training."""
SCORES_FILE = "scores.json"
PROCESS_FILE = "process.json"
"""The process that trains in the folder, see `glmtune.run_process`."""
LOG_FILE = "train.log"
"""Lines of a run that was started with --detach."""
SETTINGS_FILE = "settings.json"
"""Settings that the answers of an evaluation depend on, in the folder of these answers."""

STEP_NAME = re.compile(r"step-(\d{6,})")
"""Name of a checkpoint folder; it grows longer from step 1,000,000 on."""
CUT_LINE = "the file is damaged: take this line out, or copy the file again"
LONGEST_KEPT_NAME = 200
"""Longest name, in bytes, that a temporary name is made of: a file system takes 255, marks included."""

LONGEST_LINK = 1024
"""Size limit, in bytes, of the text file that stands for a link on Windows."""


@contextmanager
def replacing(path: Path, *, is_durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` at the end, remove it on any failure.

    Works for a file and for a folder. `is_durable`: all of it is on the disk before it has its name, and the
    name too at the end, so that a loss of power leaves the old or the new, and nothing between. An error of
    the disk becomes an `OutputError` naming `path`.
    """
    partial = _aside(path)
    try:
        _remove(partial)
        yield partial
        for weights in partial.rglob("*.safetensors"):
            # safetensors gives its files to their owner alone; like any new file in that folder
            weights.chmod(partial.stat().st_mode & 0o666)
        if is_durable:
            sync(partial)
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)  # rename() replaces a file, but no folder with something in it
        partial.replace(path)
        if is_durable:
            sync(path.parent, is_deep=False)
    except (OSError, SafetensorError) as err:  # safetensors wraps the OSError of a failing disk
        with suppress(OSError):  # which may be read-only by now
            _remove(partial)
        raise cannot_write(path, err) from err
    except BaseException:  # Ctrl-C too
        _remove(partial)
        raise


def sync(path: Path, *, is_deep: bool = True) -> None:
    """Have the system write a file, or a folder with all in it, to the disk. Raises OSError.

    Not `is_deep`: the names in a folder alone. A link has nothing of its own.
    """
    if path.is_symlink():
        return
    if path.is_dir():
        for inner in path.iterdir() if is_deep else ():
            sync(inner)
        if os.name == "nt":  # a folder cannot be opened there
            return
    # for writing: Windows refuses to sync a file that is open for reading
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _aside(path: Path, mark: str = "") -> Path:
    """Return a hidden temporary path next to `path`, made of its name, or of the hash of a long name."""
    name = os.fsencode(path.name)
    short = path.name if len(name) <= LONGEST_KEPT_NAME else hashlib.sha256(name).hexdigest()
    return path.with_name(f".{short}{mark}.partial")


def remove_folder(path: Path) -> None:
    """Delete a folder, or a link to one. Raises `OutputError`.

    The folder is renamed first, so that a killed process leaves no half-deleted folder under its name.
    """
    gone = _aside(path, ".gone")
    try:
        _remove(gone)
        path.rename(gone)
        _remove(gone)
    except OSError as err:
        raise cannot_write(path, err) from err


def remove_run(folder: Path) -> None:
    """Delete a run that has made no step; a log stays, with process.json. Raises `OutputError`."""
    if not (folder / LOG_FILE).exists():
        remove_folder(folder)
        return
    try:
        for path in folder.iterdir():
            if path.name not in (LOG_FILE, PROCESS_FILE):
                _remove(path)
    except OSError as err:
        raise cannot_write(folder, err) from err


def is_partial(path: Path) -> bool:
    """True for the temporary name of a half-written or half-deleted file or folder of a killed process."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def remove_partials(folder: Path) -> None:
    """Delete the half-written files and folders (`is_partial`) in a folder. Raises `OutputError`."""
    try:
        for path in filter(is_partial, folder.iterdir() if folder.is_dir() else ()):
            _remove(path)
    except OSError as err:
        raise cannot_write(folder, err) from err


def cannot_write(path: Path, err: OSError | SafetensorError, *, num_bytes: int | None = None) -> OutputError:
    """Return the error for a write that failed; `num_bytes`: how much it takes, if that is known."""
    reason = getattr(err, "strerror", None) or str(err)
    text, hint = f"{path}: cannot be written: {reason}", "check free space and permissions there"
    if not _is_full(err):
        return OutputError(text, hint=hint)
    there = next((parent for parent in path.parents if is_there(parent)), Path())
    free = shutil.disk_usage(there).free
    text += f"; {show_size(free)} are free there"
    if num_bytes is not None:
        text += (
            f", and it takes {show_size(num_bytes)}: {show_size(max(0, num_bytes - free))} more are needed"
        )
    return OutputError(text, hint=hint)


def _is_full(err: OSError | SafetensorError) -> bool:
    """Return True if a disk or a quota is full; safetensors and torch say it in words alone."""
    numbers = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    words = str(err).lower()
    is_told = any(os.strerror(number).lower() in words for number in numbers)
    return is_told or getattr(err, "errno", None) in numbers


def write_text(path: Path, text: str, *, is_durable: bool = False) -> None:
    """Write a text file; an older one is replaced only when the new one is complete. Raises `OutputError`.

    `is_durable` as for `replacing`.
    """
    with replacing(path, is_durable=is_durable) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object, *, is_durable: bool = False) -> None:
    """Write a JSON document, indented, as `write_text` does."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n", is_durable=is_durable)


def append_json(path: Path, value: Mapping[str, Any]) -> None:
    """Append one line to a JSON-lines file. Raises `OutputError`."""
    try:
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(value, ensure_ascii=False) + "\n")
    except OSError as err:
        raise cannot_write(path, err) from err


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a JSON-lines file that glmtune wrote; an empty list if there is no such file.

    A half-written last line is left out. Raises `CheckpointError` naming the line that is damaged or is not
    as `glmtune.contents` describes it.
    """
    if not path.exists():
        return []
    content = read_bytes(path, limit=None)
    # a killed process may have left half a line; each whole one ends with a line break
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
    """Make `path` a symbolic link to its sibling folder `target`, replacing an older link in one step.

    On Windows, where few users may make links, it is a text file with the relative path. `follow` reads both.
    """
    relative = Path(os.path.relpath(target, path.parent)).as_posix()
    with replacing(path, is_durable=True) as partial:
        if sys.platform == "win32":
            partial.write_text(relative, encoding="utf-8")
        else:
            partial.symlink_to(relative, target_is_directory=True)


def follow(path: Path) -> Path:
    """Return the folder that a link made by `link` leads to; any other path unchanged."""
    if path.is_file() and path.stat().st_size < LONGEST_LINK:
        target = path.parent / path.read_bytes().decode("utf-8", errors="replace").replace("\\", "/")
        return target.resolve() if is_there(target) and target.is_dir() else path
    # realpath and not resolve(), which raises for a link that leads to itself
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def find_checkpoint(run: Path, name: str) -> Path | None:
    """Return the checkpoint that a run's link `best` or `last` leads to; None if the run has no such link.

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


def train_on_hint(checkpoint: Path) -> str:
    """Return the hint for a checkpoint whose optimizer state is lost: train on from its weights."""
    command = f"glmtune train model={shlex.quote(str(checkpoint))} data.train=FILE output=NEW"
    return f"take the whole folder from a copy, or train on from its weights: `{command}`"


def last_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint to resume a run from: `last`, else the newest; None without any.

    Raises `CheckpointError` for a link to a checkpoint that is gone.
    """
    return find_checkpoint(run, "last") or next(reversed(list_checkpoints(run)), None)


def list_checkpoints(run: Path) -> list[Path]:
    """List the checkpoint folders of a run, in the order of their steps."""
    steps = {step_of(path): path for path in (run / "checkpoints").glob("step-*") if path.is_dir()}
    return [steps[step] for step in sorted(step for step in steps if step is not None)]


def steps_to_keep(run: Path, steps: Sequence[int]) -> set[int]:
    """Return steps of checkpoints and of the best evaluation up to each, which going back to it needs."""
    counted = [
        line
        for line in read_json_lines(run / METRICS_FILE)
        if "eval_loss" in line and line["step"] > 0 and line.get("is_settled", True)
    ]
    kept = set(steps)
    for step in steps:
        before = [line for line in counted if line["step"] <= step]
        if before:
            kept.add(min(before, key=lambda line: line["eval_loss"])["step"])  # the first of several
    return kept


def set_aside(checkpoint: Path) -> Path:
    """Give a damaged checkpoint another name, under which no run looks for it; return that path."""
    path = free_folder(checkpoint.with_name(f"damaged-{checkpoint.name}"))
    try:
        checkpoint.rename(path)
    except OSError as err:
        raise cannot_write(checkpoint, err) from err
    return path


def step_of(checkpoint: Path) -> int | None:
    """Return the step in a checkpoint folder's name, as 10 for `step-000010`; None for any other name."""
    match = STEP_NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def require_new(path: Path, *, hint: str, besides: Collection[str] = ()) -> None:
    """Raise `ConfigError` unless a new folder can be made at the path: it is free, or an empty folder.

    `besides`: names of files that may be in it.
    """
    for parent in (path, *path.parents):
        if parent.exists() and not parent.is_dir():
            raise ConfigError(
                f"{path}: {parent} is a file, not a folder", hint="name another folder: output=..."
            )
    if path.exists() and not all(is_partial(each) or each.name in besides for each in path.iterdir()):
        raise ConfigError(f"{path}: this folder is not empty and will not be overwritten", hint=hint)


def free_folder(path: Path) -> Path:
    """Return the path, or the first of `path-2`, `path-3`, ... that is free or an empty folder."""
    number, folder = 1, path
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = path.with_name(f"{path.name}-{number}")
    return folder


def make_folder(path: Path) -> None:
    """Create a folder and its parents, if they are not there. Raises `OutputError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise cannot_write(path, err) from err


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
