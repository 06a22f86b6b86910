"""Checks of an un-quantised model that a user names in place of the officially quantised base of training."""

from pathlib import Path

import torch

from glmtune.adapters.card import Card
from glmtune.errors import CheckpointError
from glmtune.folder import ModelFolder
from glmtune.models.fingerprint import fingerprint
from glmtune.models.shards import read_stored, scan_tensors

_BITS = "quantization_bit"
_ROWS = 16  # number of rows of each tensor that are compared
_NOT_PROVEN = "that it is the model that the quantised base was made from cannot be proven"


def require_original(adapter: Path, card: Card, base: ModelFolder) -> str:
    """Describe what is proven of a base that replaces a quantised one; empty if the base was not quantised.

    Raises CheckpointError for a model of another family or config and, if the quantised folder still exists,
    for a model that differs in tensors that were not quantised.
    """
    recorded = card.fingerprint["config"] if card.fingerprint else {}
    if not recorded.get(_BITS):
        return ""
    problem, here = "", fingerprint(base)
    if here.kind != card.kind:
        problem = f"the family {here.kind}, not {card.kind}"
    elif odd := here.find_odd_key(recorded, but=(_BITS,)):
        problem = f"{odd} {here.config.get(odd)}, not {recorded.get(odd)}"
    quantised = Path(card.base)
    is_here = quantised.is_dir() and (quantised / "config.json").exists()
    num_same = _count_same(quantised, base) if is_here and not problem else 0
    if num_same is None:
        problem = f"other weights than those of {quantised} that are not quantised"
    if problem:
        raise CheckpointError(
            f"{adapter}: {base} is not the original of the int{recorded[_BITS]} base: it has {problem}",
            hint="name the folder of the un-quantised model it was made from: base=FOLDER",
        )
    same = f", and {num_same} tensors that are not quantised are the same" if num_same else ""
    return f"{base} stands for {card.base}: same family and config{same}; {_NOT_PROVEN}"


def _count_same(quantised: Path, base: ModelFolder) -> int | None:
    """Return the number of floating tensors of the same shape in both; None if one has other numbers."""
    theirs, ours = scan_tensors(quantised), scan_tensors(base)
    shared = [
        name
        for name, stored in theirs.items()
        if name in ours and stored.dtype.is_floating_point and stored.shape == ours[name].shape
    ]
    for name in shared:
        one, other = (read_stored(stored[name])[:_ROWS].float() for stored in (theirs, ours))
        # rounding to another 16-bit type is no difference; numbers far below the largest may lose all digits
        if not torch.allclose(one, other, rtol=1e-2, atol=1e-4 * float(other.abs().max())):
            return None
    return len(shared)
