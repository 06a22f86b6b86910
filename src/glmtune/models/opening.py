"""A folder's model by its family: our own classes', or one of transformers'."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.families import FAMILIES, Identity
from glmtune.models.checkpoint import build_outline, check_stored, without_copies
from glmtune.models.shards import Stored
from glmtune.models.upstream import build_upstream_outline, check_upstream_stored


def open_outline(folder: Path, known: Identity, stored: Mapping[str, Stored]) -> Any:
    """A folder's model on the meta device, `stored`, if anything, known to fit it.

    Raises `CheckpointError` where config.json makes no model, or the files hold another.
    """
    if FAMILIES[known.family].is_in_transformers:
        model: Any = build_upstream_outline(folder, stored)
        if stored:
            check_upstream_stored(folder, model, stored)
        return model
    model = build_outline(folder, template=known.template, stored=stored)
    if stored:
        check_stored(model, without_copies(model, stored))
    return model
