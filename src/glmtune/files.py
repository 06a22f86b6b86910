"""Open files for reading, and read those of a model's folder; what is wrong with one is said by its name."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from io import BufferedReader
from os import PathLike
from pathlib import Path
from typing import Any

from glmtune.charset import LFS_POINTER as LFS_POINTER
from glmtune.charset import NotTextError, decode_given, decode_text
from glmtune.contents import find_fault
from glmtune.errors import CheckpointError, ConfigError, GlmtuneError
from glmtune.paths import read_path, under_wsl
from glmtune.strict import HALF_CHARACTER, UnfitJsonError, parse_json

SMALL_SUFFIXES = {".jinja", ".json", ".model", ".py", ".txt"}
"""Of the files that a model needs beside its weights: config, tokenizer, code."""

WEIGHT_SUFFIXES = (".safetensors", ".bin")
"""Of files of weights."""

HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
COPY_AGAIN = "copy or download the file again"
RIGHT_FILE = "is this the right file?"


MOST_BYTES = 2**26
"""Of a file that is read whole and is no table of rows; the largest, GLM-4's tokenizer.json, has a third."""
ODD_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
"""What is no file, by the type in its mode."""


class OddFileError(OSError):
    """What stands at a path is not to be read as a file: why, and what to do."""

    def __init__(self, what: str, *, hint: str) -> None:
        super().__init__(errno.EINVAL, what)
        self.hint = hint


def given_path(path: str | PathLike[str]) -> Path:
    """As `read_path`, but raises `ConfigError`."""
    try:
        return read_path(path)
    except ValueError as err:
        raise ConfigError(str(err), hint="name another path") from None


def windows_hint(path: str | PathLike[str]) -> str:
    """What to do about a path with Windows' drive letter where there are no drives; empty for another."""
    there = under_wsl(str(path)) if os.name != "nt" else None
    return f"this is a path of Windows; a Linux in it finds that at {there}" if there else ""


def is_there(path: Path) -> bool:
    """Whether something stands at a path; nothing does where no file can, as at too long a name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def open_file(path: Path) -> BufferedReader:
    """A file, open for reading. Raises `OSError`; for a pipe or a device too: reading one may never end."""
    try:
        mode = path.stat().st_mode
    except ValueError:  # a zero byte in it
        raise OddFileError("no file can have this name", hint="check the path") from None
    kind = ODD_KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        raise OddFileError(f"is {kind}, not a file", hint="save what it gives to a file, and name that")
    return path.open("rb")


def load_bytes(path: Path, limit: int | None = MOST_BYTES) -> bytes:
    """All bytes of a file. Raises `OSError`, for one of more bytes than the limit too."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OddFileError(f"holds {size:,} bytes, at most {limit:,} are read", hint=RIGHT_FILE)
        return file.read()


def read_bytes(path: Path, limit: int | None = MOST_BYTES) -> bytes:
    """As `load_bytes`, but raises `CheckpointError`."""
    try:
        return load_bytes(path, limit)
    except OSError as err:
        raise unreadable(path, err) from err


def read_start(path: Path, size: int = 512) -> bytes:
    """The first bytes of a file that is there and no git-lfs pointer. Raises `CheckpointError`."""
    try:
        with open_file(path) as file:
            start = file.read(size)
    except OSError as err:
        raise unreadable(path, err) from err
    return _whole(path, start)


def _whole(path: Path, content: bytes) -> bytes:
    """The content, or a `CheckpointError` for a git-lfs pointer."""
    if content.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path}: a git-lfs pointer, not the file itself", hint="run `git lfs pull` in that folder"
        )
    return content


def read_text(path: Path, *, is_given: bool = False) -> str:
    """A UTF-8 file's text, without a byte-order mark. Raises `CheckpointError`.

    `is_given`: written by a user, not by a program; its byte-order mark may be UTF-16's too.
    """
    content = _whole(path, read_bytes(path))
    try:
        return decode_given(content, str(path)).text if is_given else decode_text(content, str(path))
    except NotTextError as err:
        raise CheckpointError(f"{path}:{err.line}: {err}", hint=f"{COPY_AGAIN}, or {err.hint}") from None


def read_json(path: Path, *, is_ours: bool = False) -> dict[str, Any]:
    """The JSON object in a file. Raises `CheckpointError` with line and column if it is broken.

    A file that `contents` names holds what it says. A key given twice is an error; in files of others only
    where the two values differ.
    """
    return parse_json_object(read_text(path), path, is_ours=is_ours)


def parse_json_object(
    text: str, path: Path, *, is_ours: bool, line: int | None = None, hint: str = COPY_AGAIN
) -> dict[str, Any]:
    """The JSON object of a file's text, or of one line of it; errors as of `read_json`."""
    try:
        content = parse_json(text, may_agree=not is_ours)
    except UnfitJsonError as err:
        raise CheckpointError(f"{_at(path, err, line)}: {err.msg}", hint=err.hint) from None
    except json.JSONDecodeError as err:
        raise CheckpointError(f"{_at(path, err, line)}: broken JSON: {err.msg}", hint=hint) from None
    where = path if line is None else f"{path}:{line}"
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: holds a {type(content).__name__}, expected an object", hint=hint)
    if HALF_ESCAPE.search(text) and HALF_CHARACTER.search(json.dumps(content, ensure_ascii=False)):
        raise CheckpointError(f"{where}: holds half a character", hint=r"write the whole \ud8xx\udcxx pair")
    if fault := find_fault(path.name, content):
        raise CheckpointError(f"{where}: {fault}", hint=hint)
    return content


def _at(path: Path, err: json.JSONDecodeError, line: int | None) -> str:
    return f"{path}:{err.lineno + (line or 1) - 1}:{err.colno}"


def read_json_if_there(path: Path, *, is_ours: bool = False) -> dict[str, Any]:
    """As `read_json`; empty where there is no such file."""
    return read_json(path, is_ours=is_ours) if is_there(path) else {}


def unreadable(
    path: Path,
    err: OSError,
    kind: type[GlmtuneError] = CheckpointError,
    *,
    hint: str = "check the path, its owner and mode, and the disk",
) -> GlmtuneError:
    """The error for a file that could not be read."""
    reason = err.strerror or str(err) or type(err).__name__
    if isinstance(err, OddFileError):
        return kind(f"{path}: {reason}", hint=err.hint)
    return kind(f"{path}: cannot be read: {reason}", hint=windows_hint(path) or hint)


def hash_file(path: Path) -> str:
    """SHA-256 of a file. Raises `CheckpointError` if it cannot be read."""
    try:
        with open_file(path) as content:
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
