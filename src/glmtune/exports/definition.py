"""Proof that an adapter is written as it was trained, number by number."""

from pathlib import Path

import torch
from torch import Tensor

from glmtune.adapters.factors import Factors, read_factors, row_blocks
from glmtune.adapters.own_weights import read_trained
from glmtune.adapters.peft_rules import read_adapter_config
from glmtune.adapters.store import stored_tensors
from glmtune.exports.refusal import refused


def require_same_update(trained: Path, written: Path) -> None:
    """Raise `OutputError` unless the factors in a folder make the update of those they were made of.

    A layer that is left out must have none.
    """
    found = _factors_in(written)
    for layer, factors in _factors_in(trained).items():
        outputs, inputs = len(factors.b), factors.a.shape[1]
        ours = found.get(layer, Factors(torch.zeros(1, inputs), torch.zeros(outputs, 1), 1.0))
        for rows in row_blocks(outputs):
            _require_same_rows(layer, factors, ours, rows)


def _factors_in(adapter: Path) -> dict[str, Factors]:
    return read_factors(stored_tensors(adapter), read_adapter_config(adapter))


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
