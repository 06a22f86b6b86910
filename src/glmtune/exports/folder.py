"""The files of an export next to its weights: copies of the base's, changed only where the export differs."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glmtune.errors import OutputError
from glmtune.exports.source import ExportSource
from glmtune.families import tells_format
from glmtune.files import copy_small_files, list_small_files, read_json, read_json_if_there, show_size


def copy_base_files(source: ExportSource, folder: Path, facts: Mapping[str, Any] = {}) -> None:
    """Copy the base's small files byte by byte, and set `facts` in config.json, which else stays as it is.

    If nothing in them tells the chat format, it is added to tokenizer_config.json, so that no user has to
    name it.
    """
    copy_small_files(source.base, folder)
    config = read_json(folder / "config.json")
    # rewritten only for a difference, so that otherwise the file keeps its bytes and its hash
    if any(config.get(key) != value for key, value in facts.items()):
        write_pretty(folder / "config.json", {**config, **facts})
    if source.identity.template and not tells_format(folder):
        path = folder / "tokenizer_config.json"
        write_pretty(path, {**read_json_if_there(path), "template": source.identity.template})


def dtype_facts(base: Path, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return the entry of config.json for another type of weights, under the key that it already uses."""
    if dtype is None:
        return {}
    config = read_json(base / "config.json")
    keys = [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]
    return dict.fromkeys(keys, str(dtype).removeprefix("torch."))


def write_pretty(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object in transformers' layout, replacing the file."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def small_bytes(base: Path) -> int:
    """Return the total size of the files that `copy_base_files` copies."""
    return sum(path.stat().st_size for path in list_small_files(base))


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise OutputError unless the disk of a future folder has `needed_bytes` free."""
    # the folder and some of its parents may not exist yet; the disk is that of the nearest one that does
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise OutputError(
            f"{folder}: needs {show_size(needed_bytes)}, but {show_size(free)} are free there",
            hint="free some space, or name a folder on another disk: output=FOLDER",
        )


def folder_bytes(folder: Path) -> int:
    """Return the total size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
