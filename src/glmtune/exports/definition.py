"""Proof of merged weights, number by number: what base + adapter are by definition, rounded, is written."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from glmtune.exports.refusal import refused
from glmtune.files import read_json
from glmtune.methods.adapter import ADAPTER_FILE, stored_tensors
from glmtune.methods.factors import START, Factors, is_part, read_factors

Definition = Factors | Tensor
"""A weight's factors, or the whole weight that stands in its place."""

_ROWS = 256  # so many are compared at once: fp64 copies of a whole weight would fill the memory


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
        off = _largest_excess(written[rows], *_bounds(base, definition, rows, written.dtype))
        if off != 0:  # nan is no match
            raise refused(
                f"{name}: not the weight of base + adapter; beyond what rounding can do, off by {off:.3g}"
            )


def _bounds(base: Tensor, definition: Definition, rows: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rounding keeps order, so what is between the least and the largest is between them when rounded."""
    if isinstance(definition, Tensor):
        value = definition[rows].to(dtype)
        return value, value
    value, slack = definition.merge(base, rows)
    return (value - slack).to(dtype), (value + slack).to(dtype)


def _largest_excess(written: Tensor, low: Tensor, high: Tensor) -> float:
    below, above = low.double() - written.double(), written.double() - high.double()
    return float(torch.maximum(below, above).clamp(min=0).max())
