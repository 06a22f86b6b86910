"""Proof of what is written, number by number: base + adapter by definition, or the adapter as trained."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from glmtune.adapters.factors import START, Factors, Rows, is_part, read_factors
from glmtune.adapters.peft_rules import read_adapter_config
from glmtune.adapters.store import stored_tensors
from glmtune.adapters.trained import read_trained
from glmtune.exports.refusal import refused

Definition = Factors | Tensor
"""A weight's factors, or the whole weight that stands in its place."""

_ROWS = 2048  # so many are compared at once: copies of a whole weight would fill the memory


def read_definitions(adapter: Path) -> dict[str, Definition]:
    """By their names in the base, the weights that a folder in PEFT's layout changes."""
    tensors = stored_tensors(adapter)
    factors = read_factors(tensors, read_adapter_config(adapter))
    whole = {name.removeprefix(START): value for name, value in tensors.items() if not is_part(name)}
    return {**{f"{layer}.weight": found for layer, found in factors.items()}, **whole}


def _factors_in(adapter: Path) -> dict[str, Factors]:
    return read_factors(stored_tensors(adapter), read_adapter_config(adapter))


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


def require_same_update(trained: Path, written: Path) -> None:
    """Raise `OutputError` unless the factors in a folder make the update of those they were made of.

    A layer that is left out must have none.
    """
    found = _factors_in(written)
    for layer, factors in _factors_in(trained).items():
        outputs, inputs = len(factors.b), factors.a.shape[1]
        ours = found.get(layer, Factors(torch.zeros(1, inputs), torch.zeros(outputs, 1), 1.0))
        for start in range(0, outputs, _ROWS):
            _require_same_rows(layer, factors, ours, slice(start, start + _ROWS))


def _require_same_rows(layer: str, trained: Factors, ours: Factors, rows: slice) -> None:
    nothing = torch.zeros(len(trained.b), 1).expand(-1, trained.a.shape[1])
    low, high = trained.bounds(nothing, rows)
    least, largest = ours.bounds(nothing, rows)
    if not bool(((least <= high) & (largest >= low)).all()):
        raise refused(f"{layer}: its factors are not as they were trained")


def require_same_prefix(trained: Path, written: Path) -> None:
    """Raise `OutputError` unless a prefix is written with the numbers that were trained."""
    ours, theirs = read_trained(written), read_trained(trained)
    names = sorted(ours.keys() | theirs.keys())
    odd = next((name for name in names if not _is_same(ours.get(name), theirs.get(name))), None)
    if odd:
        raise refused(f"{odd} is not as it was trained")


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one.float(), other.float())
