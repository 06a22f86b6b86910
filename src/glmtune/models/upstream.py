"""Open a folder of a family whose model is transformers' own class, with the same checks as the others.

Every file's header is read first, so a missing shard or a git-lfs pointer is named before anything is loaded.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from glmtune.errors import CheckpointError
from glmtune.files import read_json
from glmtune.models.checkpoint import resolve_device, resolve_dtype, stored_dtype

_SAME_MODEL = "config.json and weights must be of the same model, and complete"


def load_in_transformers(
    folder: Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    template: str | None = None,  # only ChatGLM2's and ChatGLM3's model depends on it
) -> Any:
    """The model of a folder, in evaluation mode, its weights in `dtype` on `device`.

    Raises CheckpointError (files, names, shapes) and ConfigError (`dtype`, `device`).
    """
    place = resolve_device(device)
    config = read_upstream_config(folder)
    wanted = resolve_dtype(dtype, stored_dtype(folder), place)
    with _bar_on_a_terminal():
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=wanted,
            device_map=None if place.type == "cpu" else {"": place},
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported in `found`, and refused below
        )
    _check_found(folder, found)
    return model.eval()


def build_upstream_outline(folder: Path) -> Any:
    """The folder's model without any weights: every parameter on the meta device, from config.json alone."""
    config = read_upstream_config(folder)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)


@contextmanager
def _bar_on_a_terminal() -> Iterator[None]:
    """Keep transformers' bar off a stderr that nobody looks at."""
    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def read_upstream_config(folder: Path) -> Any:
    """The folder's config as transformers reads it. Raises CheckpointError for one that it refuses."""
    path = folder / "config.json"
    content = read_json(path)
    if content.get("quantization_config"):
        method = content["quantization_config"].get("quant_method")
        raise CheckpointError(
            f"{path}: pre-quantised weights ({method}) cannot be opened",
            hint="open the original, unquantised folder of this model",
        )
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: {error}", hint="take config.json from the published folder"
        ) from error


def _check_found(folder: Path, found: Mapping[str, Any]) -> None:
    """Raise CheckpointError for the first tensor that is missing, left over, of another shape or unread."""
    for key, problem in (
        ("missing_keys", "is missing"),
        ("unexpected_keys", "is not part of this model"),
        ("mismatched_keys", "has another shape"),
    ):
        names = sorted(found[key])
        if not names:
            continue
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        if key == "mismatched_keys":
            name, stored, expected = names[0]
            problem = f"has shape {list(stored)}, config.json makes it {list(expected)}"
        else:
            name = names[0]
        raise CheckpointError(f"{folder}: tensor {name} {problem}{more}", hint=_SAME_MODEL)
    if found["error_msgs"]:
        raise CheckpointError(f"{folder}: {found['error_msgs'][0]}", hint=_SAME_MODEL)
