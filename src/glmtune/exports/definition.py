"""Proof that an exported adapter has the numbers that were trained."""

from pathlib import Path

import torch

from glmtune.adapters.factors import Factors, read_factors, row_blocks
from glmtune.adapters.own_weights import read_trained
from glmtune.adapters.peft_rules import read_adapter_config
from glmtune.adapters.store import stored_tensors
from glmtune.exports.refusal import refused


def require_same_update(trained: Path, written: Path, strength: float) -> None:
    """Raise `OutputError` unless the factors in folder `written` give `strength` x the update in `trained`.

    The update of a layer that is left out of `written` must be 0.
    """
    written_factors = _factors_in(written)
    for layer, factors in _factors_in(trained).items():
        outputs, inputs = len(factors.b), factors.a.shape[1]
        no_update = Factors(torch.zeros(1, inputs), torch.zeros(outputs, 1), 1.0)
        ours = written_factors.get(layer, no_update)
        for rows in row_blocks(outputs):
            # The update alone, merged into a weight of zeros (which take no memory). Both are computed in
            # other steps, so they are the same if the bounds of their rounding errors overlap.
            zeros = torch.zeros(outputs, 1).expand(-1, inputs)
            low, high = factors.at(strength).bounds(zeros, rows)
            our_low, our_high = ours.bounds(zeros, rows)
            if not bool(((our_low <= high) & (our_high >= low)).all()):
                raise refused(f"{layer}: its factors are not as they were trained")


def _factors_in(adapter: Path) -> dict[str, Factors]:
    return read_factors(stored_tensors(adapter), read_adapter_config(adapter))


def require_same_prefix(trained: Path, written: Path) -> None:
    """Raise `OutputError` unless a prefix is written with the numbers that were trained."""
    ours, theirs = read_trained(written), read_trained(trained)
    for name in sorted(ours.keys() | theirs.keys()):
        our, their = ours.get(name), theirs.get(name)
        if our is None or their is None or not torch.equal(our.float(), their.float()):
            raise refused(f"{name} is not as it was trained")
