"""Open files for reading, and read the text and JSON files of a model folder; errors name the file."""

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
"""Suffixes of the files that a model needs besides its weights: config, tokenizer, code."""

WEIGHT_SUFFIXES = (".safetensors", ".bin")
"""Suffixes of weight files, the preferred one first."""

# JSON may escape half of a surrogate pair (`\ud83d` without its `\ude00`); no UTF-8 file can hold that
HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
COPY_AGAIN = "copy or download the file again"
RIGHT_FILE = "is this the right file?"

MOST_BYTES = 2**26
"""Largest file that is read into memory whole; GLM-4's tokenizer.json, the largest of a model, has a third.

Files of training rows have no such limit.
"""

ODD_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
"""Kinds of path that are not read as files, by the file type in `st_mode`."""


class OddFileError(OSError):
    """A path that is not read as a file, such as a pipe or too large a file; `hint` says what to do."""

    def __init__(self, reason: str, *, hint: str) -> None:
        super().__init__(errno.EINVAL, reason)
        self.hint = hint


def given_path(path: str | PathLike[str]) -> Path:
    """Return a path that a user gave, `~` expanded, as `read_path`. Raises `ConfigError`."""
    try:
        return read_path(path)
    except ValueError as err:
        raise ConfigError(str(err), hint="name another path") from None


def windows_hint(path: str | PathLike[str]) -> str:
    """Return the hint for a Windows path (`C:\\...`) on another system; empty for any other path."""
    wsl_path = under_wsl(str(path)) if os.name != "nt" else None
    return f"this is a path of Windows; a Linux in it finds that at {wsl_path}" if wsl_path else ""


def is_there(path: Path) -> bool:
    """True if the path exists. False also for one that cannot exist or be looked up, as too long a name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading bytes. Raises `OSError`, also for a pipe or device, which might never end."""
    try:
        mode = path.stat().st_mode
    except ValueError:  # a zero byte in it
        raise OddFileError("no file can have this name", hint="check the path") from None
    kind = ODD_KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        raise OddFileError(f"is {kind}, not a file", hint="save what it gives to a file, and name that")
    return path.open("rb")


def load_bytes(path: Path, limit: int | None = MOST_BYTES) -> bytes:
    """Read all bytes of a file. Raises `OSError`, also for more than `limit` bytes; None: no limit."""
    with open_file(path) as file:
        # the size of the open file: the path may lead to another one by now
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OddFileError(f"holds {size:,} bytes, at most {limit:,} are read", hint=RIGHT_FILE)
        return file.read()


def read_bytes(path: Path, limit: int | None = MOST_BYTES) -> bytes:
    """Read all bytes of a file, as `load_bytes`. Raises `CheckpointError`."""
    try:
        return load_bytes(path, limit)
    except OSError as err:
        raise unreadable(path, err) from err


def read_start(path: Path, size: int = 512) -> bytes:
    """Read the first bytes of a file. Raises `CheckpointError`, also for a git-lfs pointer."""
    try:
        with open_file(path) as file:
            start = file.read(size)
    except OSError as err:
        raise unreadable(path, err) from err
    return _refuse_pointer(path, start)


def _refuse_pointer(path: Path, content: bytes) -> bytes:
    # a clone without git-lfs has a text of three lines in place of each large file
    if content.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path}: a git-lfs pointer, not the file itself", hint="run `git lfs pull` in that folder"
        )
    return content


def read_text(path: Path, *, is_given: bool = False) -> str:
    """Read a UTF-8 text file, without its byte-order mark. Raises `CheckpointError`.

    `is_given`: a user wrote it, not a program, so UTF-16 with a byte-order mark is read too.
    """
    content = _refuse_pointer(path, read_bytes(path))
    try:
        return decode_given(content, str(path)).text if is_given else decode_text(content, str(path))
    except NotTextError as err:
        raise CheckpointError(f"{path}:{err.line}: {err}", hint=f"{COPY_AGAIN}, or {err.hint}") from None


def read_json(path: Path, *, is_ours: bool = False) -> dict[str, Any]:
    """Read the JSON object in a file. Raises `CheckpointError`, with line and column for broken JSON.

    A file that `glmtune.contents` describes is checked against that. A key given twice is an error; in files
    that glmtune has not written (`is_ours` false) only if the two values differ.
    """
    return parse_json_object(read_text(path), path, is_ours=is_ours)


def parse_json_object(
    text: str, path: Path, *, is_ours: bool, line: int | None = None, hint: str = COPY_AGAIN
) -> dict[str, Any]:
    """Parse the JSON object in a file's text, or in its line number `line`; errors as of `read_json`."""
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
    """Read the JSON object in a file, as `read_json`; empty if there is no such file."""
    return read_json(path, is_ours=is_ours) if is_there(path) else {}


def unreadable(
    path: Path,
    err: OSError,
    kind: type[GlmtuneError] = CheckpointError,
    *,
    hint: str = "check the path, its owner and mode, and the disk",
) -> GlmtuneError:
    """Return the error, of class `kind`, for a file that could not be read."""
    reason = err.strerror or str(err) or type(err).__name__
    if isinstance(err, OddFileError):
        return kind(f"{path}: {reason}", hint=err.hint)
    return kind(f"{path}: cannot be read: {reason}", hint=windows_hint(path) or hint)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex. Raises `CheckpointError` if it cannot be read."""
    try:
        with open_file(path) as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as err:
        raise unreadable(path, err) from err


def list_small_files(folder: Path) -> list[Path]:
    """List the config, tokenizer, code and licence files of a model folder: all but the weights."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (path.suffix in SMALL_SUFFIXES or "LICENSE" in path.name.upper())
        and not path.name.endswith(".index.json")  # names shards that a copy may not have
    ]


def copy_small_files(base: Path, folder: Path) -> None:
    """Copy the files that `list_small_files` lists, byte by byte."""
    for path in list_small_files(base):
        shutil.copyfile(path, folder / path.name)


def show_size(num_bytes: float) -> str:
    """Format a size for people, as `12.3 GB`."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"
