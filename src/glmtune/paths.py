"""Paths as people give them: one that no file system can hold is told at once, by what is wrong with it."""

import os
import re
import shlex
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

EXAMPLES = "examples"
"""The folder of the example rows."""
MAX_NAME_BYTES = 255
"""Longest name of a file or folder. Source: man7.org limits.h, NAME_MAX; NTFS and APFS have 255 too."""
MAX_PATH_BYTES = 4095
"""Longest path. Source: the same, PATH_MAX without the zero at its end."""


ESCAPES = dict(zip("\0\a\b\t\n\v\f\r\x1b\x85\xa0\u2028\u2029", "0abtnvfreN_LP", strict=True))
"""What a backslash and a letter in YAML's double quotes become. Source: yaml.org/spec/1.1, 5.7."""


def as_written(path: str) -> str:
    """The path with its backslashes, where YAML's double quotes have made line breaks and tabs of them."""
    return "".join(f"\\{ESCAPES[c]}" if c in ESCAPES else c for c in path)


def read_path(given: str | PathLike[str], *, has_weights: bool = False) -> Path:
    """The path, `~` replaced by the home folder. Raises `ValueError` for one that cannot be anywhere.

    `has_weights`: for a folder of weights, which safetensors opens by names in UTF-8 alone.
    """
    if not isinstance(given, str | PathLike):
        raise ValueError(f"a path is text, not of type {type(given).__name__}")
    text = os.fspath(given)
    if "\0" in text:
        raise ValueError("a path with a zero character in it, which no file system can hold")
    try:
        path = Path(text).expanduser()
        written = str(path).encode() if has_weights else os.fsencode(path)
    except UnicodeEncodeError as err:
        what = "a folder of weights" if has_weights else "files here"
        raise ValueError(f"a path with {text[err.start]!a}, which no name of {what} can have") from None
    except RuntimeError:  # pathlib's own for `~name`
        raise ValueError(f"{path_start(text)}: no user of this name has a home folder") from None
    longest = max(written.split(os.fsencode(os.sep)), key=len)
    if len(longest) > MAX_NAME_BYTES:
        raise ValueError(
            f"{path_start(text)}: a name of {len(longest):,} bytes, and {MAX_NAME_BYTES} are possible"
        )
    if len(written) > MAX_PATH_BYTES:
        raise ValueError(
            f"{path_start(text)}: a path of {len(written):,} bytes, and {MAX_PATH_BYTES:,} are possible"
        )
    return path


def several(text: str) -> list[str]:
    """The paths in a word that names several, as `a.json,b.json` or `[a.json, b.json]`; else the word."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [part.strip().strip("'\"") for part in inner.split(",") if part.strip()] or [text]


def listing(names: Sequence[str]) -> str:
    """The word that names all of these files of training rows; empty where one of them needs quotes."""
    is_plain = all(re.fullmatch(r"[\w./:~+-]+", name) for name in names)
    return f"data.train=[{','.join(names)}]" if is_plain else ""


def joining(names: Sequence[str]) -> str:
    """The hint that joins files of rows to one."""
    files = " ".join(shlex.quote(as_written(name)) for name in names)
    return f"join them first: `glmtune data convert {files} all.jsonl --to messages`; then name all.jsonl"


def examples_folder() -> Path:
    """Where the example rows are: inside the installed package, or in a checkout of the project."""
    package = Path(__file__).parent
    installed = package / EXAMPLES
    return installed if installed.is_dir() else package.parents[1] / EXAMPLES


def find_rows(path: Path) -> Path:
    """The path of a file of rows; where nothing is there, that of the bundled example of this name, if any.

    Examples are named as in a checkout: `examples/adverts.jsonl`.
    """
    bundled = examples_folder() / path.name
    is_one = path.parent == Path(EXAMPLES) and bundled.suffix in {".json", ".jsonl"} and bundled.is_file()
    return bundled if is_one and not path.exists() else path


def under_wsl(path: str) -> str | None:
    """Where Windows' files stand for a Linux in it. Source: learn.microsoft.com/windows/wsl/filesystems."""
    drive = re.match(r"([A-Za-z]):[\\/]", path)
    return drive and f"/mnt/{drive[1].lower()}/{path[3:]}".replace("\\", "/")


def path_start(text: str) -> str:
    """The beginning of a path, as much as a message has room for."""
    return text if len(text) <= 60 else f"{text[:57]}..."
