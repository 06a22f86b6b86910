"""Read the files of a model's folder; what is wrong with one is said once, by its name."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from glmtune.errors import CheckpointError
from glmtune.strict import LFS_POINTER as LFS_POINTER
from glmtune.strict import KeyTwiceError, NotTextError, decode, parse_json

SMALL_SUFFIXES = {".jinja", ".json", ".model", ".py", ".txt"}
"""Of the files that a model needs beside its weights: config, tokenizer, code."""

COPY_AGAIN = "copy or download the file again"


def read_start(path: Path, size: int = 512) -> bytes:
    """The first bytes of a file that is there and no git-lfs pointer. Raises `CheckpointError`."""
    try:
        with path.open("rb") as file:
            start = file.read(size)
    except OSError as err:
        raise unreadable(path, err) from err
    if start.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path}: a git-lfs pointer, not the file itself", hint="run `git lfs pull` in that folder"
        )
    return start


def read_text(path: Path) -> str:
    """A UTF-8 file's text, without a byte-order mark. Raises `CheckpointError`."""
    read_start(path)
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as err:
        raise unreadable(path, err) from err
    except NotTextError as err:
        raise CheckpointError(f"{path}:{err.line}: {err}", hint=f"{COPY_AGAIN}, or {err.hint}") from None


def read_json(path: Path, *, is_ours: bool = False) -> dict[str, Any]:
    """The JSON object in a file. Raises `CheckpointError` with line and column if it is broken.

    A key given twice is an error; in files of others only where the two values differ.
    """
    try:
        content = parse_json(read_text(path), may_agree=not is_ours)
    except KeyTwiceError as err:
        place = f"{path}:{err.lineno}:{err.colno}"
        raise CheckpointError(f"{place}: {err.msg}", hint="keep the one that is right") from None
    except json.JSONDecodeError as err:
        place = f"{path}:{err.lineno}:{err.colno}"
        raise CheckpointError(f"{place}: broken JSON: {err.msg}", hint=COPY_AGAIN) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected an object", hint=COPY_AGAIN
        )
    return content


def read_json_if_there(path: Path, *, is_ours: bool = False) -> dict[str, Any]:
    """As `read_json`; empty where there is no such file."""
    return read_json(path, is_ours=is_ours) if path.is_file() else {}


def unreadable(path: Path, err: OSError) -> CheckpointError:
    """The error for a file that could not be read."""
    reason = err.strerror or str(err) or type(err).__name__
    return CheckpointError(
        f"{path}: cannot be read: {reason}", hint="check the path, its owner and mode, and the disk"
    )


def hash_file(path: Path) -> str:
    """SHA-256 of a file. Raises `CheckpointError` if it cannot be read."""
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as err:
        raise unreadable(path, err) from err


def list_small_files(folder: Path) -> list[Path]:
    """Config, tokenizer, code and licence of a model's folder: all that it needs beside its weights."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (path.suffix in SMALL_SUFFIXES or "LICENSE" in path.name.upper())
        and not path.name.endswith(".index.json")
    ]


def copy_small_files(base: Path, folder: Path) -> None:
    """Copy what `list_small_files` names, byte by byte."""
    for path in list_small_files(base):
        shutil.copyfile(path, folder / path.name)
