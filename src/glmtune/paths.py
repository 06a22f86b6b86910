"""Paths that users give: expanded, and refused with the reason where no file system can hold them."""

import os
import re
import shlex
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

EXAMPLES, RECIPES = "examples", "recipes"
"""The folders of the example rows and the recipes, in a checkout and in the package."""
MAX_NAME_BYTES = 255
"""Longest name of a file, in bytes. Source: man7.org limits.h, NAME_MAX; NTFS and APFS have 255 too."""
MAX_PATH_BYTES = 4095
"""Longest path, in bytes. Source: man7.org limits.h, PATH_MAX without the zero byte at its end."""

ESCAPES = dict(zip("\0\a\b\t\n\v\f\r\x1b\x85\xa0\u2028\u2029", "0abtnvfreN_LP", strict=True))
"""Characters that YAML makes of a backslash and a letter in double quotes, with that letter.

Source: yaml.org/spec/1.1, section 5.7.
"""


def as_written(path: str) -> str:
    """Restore a Windows path: in YAML's double quotes, "D:\\new" has a line break in place of `\\n`."""
    return "".join(f"\\{ESCAPES[c]}" if c in ESCAPES else c for c in path)


def read_path(given: str | PathLike[str], *, has_weights: bool = False) -> Path:
    """Return a path, `~` expanded to the home folder. Raises `ValueError` if no file system can hold it.

    `has_weights`: the path of a folder of weights, which safetensors opens by UTF-8 names only.
    """
    if not isinstance(given, str | PathLike):
        raise ValueError(f"a path is text, not of type {type(given).__name__}")
    text = os.fspath(given)
    if "\0" in text:
        raise ValueError("a path with a zero character in it, which no file system can hold")
    try:
        path = Path(text).expanduser()
        # fsencode takes the surrogates that Python decodes foreign bytes of a file name to; UTF-8 does not
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


def split_paths(text: str) -> list[str]:
    """Split a text that names several paths, as `a.json,b.json` or `[a.json, b.json]`."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [part.strip().strip("'\"") for part in inner.split(",") if part.strip()] or [text]


def setting_of(names: Sequence[str]) -> str:
    """Return the setting `data.train=[a.json,b.json]` for these files; empty if a name needs quotes."""
    is_plain = all(re.fullmatch(r"[\w./:~+-]+", name) for name in names)
    return f"data.train=[{','.join(names)}]" if is_plain else ""


def join_hint(names: Sequence[str]) -> str:
    """Return the hint to join several files of rows to one."""
    files = " ".join(shlex.quote(as_written(name)) for name in names)
    return f"join them first: `glmtune data convert {files} all.jsonl --to messages`; then name all.jsonl"


def _bundled(name: str) -> Path:
    """Return a folder that comes with the program: in the installed package, or in a checkout."""
    package = Path(__file__).parent
    installed = package / name
    return installed if installed.is_dir() else package.parents[1] / name


def examples_folder() -> Path:
    """Return the folder of the example rows."""
    return _bundled(EXAMPLES)


def find_rows(path: Path) -> Path:
    """Return the path of a file of rows: the path itself, or a bundled example if nothing is there.

    Examples are named as in a checkout: `examples/adverts.jsonl`.
    """
    bundled = examples_folder() / path.name
    is_example = path.parent == Path(EXAMPLES) and bundled.suffix in {".json", ".jsonl"} and bundled.is_file()
    return bundled if is_example and not path.exists() else path


def find_recipe(path: Path) -> Path:
    """Return the path of a recipe: the path itself, or a bundled recipe if nothing is there.

    Recipes are named as in a checkout: `recipes/identity.yaml`, `recipes/tiny/lora.yaml`.
    """
    bundled = _bundled(RECIPES).joinpath(*path.parts[1:])
    is_recipe = path.parts[:1] == (RECIPES,) and bundled.suffix == ".yaml" and bundled.is_file()
    return bundled if is_recipe and not path.exists() else path


def under_wsl(path: str) -> str | None:
    """Return the path in WSL (Linux inside Windows) of a Windows path with a drive letter; None for others.

    Source: learn.microsoft.com/windows/wsl/filesystems.
    """
    drive = re.match(r"([A-Za-z]):[\\/]", path)
    return drive and f"/mnt/{drive[1].lower()}/{path[3:]}".replace("\\", "/")


def path_start(text: str) -> str:
    """Return the first 60 characters of a path, for a message."""
    return text if len(text) <= 60 else f"{text[:57]}..."
