"""Proof of merged weights, number by number: what base + adapter are by definition, rounded, is written."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from glmtune.exports.refusal import refused
from glmtune.files import read_json
from glmtune.methods.adapter import ADAPTER_FILE, stored_tensors
from glmtune.methods.factors import START, Factors, Rows, is_part, read_factors

Definition = Factors | Tensor
"""A weight's factors, or the whole weight that stands in its place."""

_ROWS = 2048  # so many are compared at once: copies of a whole weight would fill the memory


def read_definitions(adapter: Path) -> dict[str, Definition]:
    """By their names in the base, the weights that a folder in PEFT's layout changes."""
    tensors = stored_tensors(adapter)
    factors = read_factors(tensors, read_json(adapter / ADAPTER_FILE))
    whole = {name.removeprefix(START): value for name, value in tensors.items() if not is_part(name)}
    return {**{f"{layer}.weight": found for layer, found in factors.items()}, **whole}


def require_same_names(changed: Mapping[str, object], defined: Mapping[str, Definition]) -> None:
    """Raise `OutputError` unless just those weights are changed that the adapter's files change."""
    odd = sorted(changed.keys() ^ defined.keys())
    if odd:
        what = "is not merged, though" if odd[0] in defined else "is merged, though not"
        raise refused(f"{odd[0]} {what} in the adapter's files: the result would not be base + adapter")


@torch.no_grad()
def require_defined(name: str, written: Tensor, base: Tensor, definition: Definition) -> None:
    """Raise `OutputError` unless every number is that of base + adapter, rounded to the type it has here.

    Where fp32's own rounding leaves two neighbours open, either will do.
    """
    if base.shape != written.shape:
        raise refused(f"{name}: shape {list(written.shape)}, in the base it has {list(base.shape)}")
    for start in range(0, len(base), _ROWS):
        rows = slice(start, start + _ROWS)
        is_other = written[rows] != _merge(base, definition, rows).to(written.dtype)
        if is_other.any():
            odd = is_other.reshape(len(is_other), -1).any(dim=1).nonzero()[:, 0]
            _require_between(name, written, base, definition, start + odd)


def _merge(base: Tensor, definition: Definition, rows: Rows) -> Tensor:
    return definition[rows] if isinstance(definition, Tensor) else definition.merge(base, rows)


def _require_between(name: str, written: Tensor, base: Tensor, definition: Definition, rows: Tensor) -> None:
    """Rounding keeps order: what is between the least and the largest value is so when all are rounded."""
    value, kind = written[rows].double(), written.dtype
    pair = (definition[rows],) * 2 if isinstance(definition, Tensor) else definition.bounds(base, rows)
    low, high = (bound.to(kind).double() for bound in pair)
    off = float(torch.maximum(low - value, value - high).clamp(min=0).max())
    if off != 0:  # nan is no match
        raise refused(
            f"{name}: not the weight of base + adapter; beyond what rounding can do, off by {off:.3g}"
        )
