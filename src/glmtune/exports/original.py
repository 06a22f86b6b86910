"""The un-quantised model that stands for an officially quantised base, as far as that can be told."""

from pathlib import Path

import torch
from torch import Tensor

from glmtune.adapters.card import Card
from glmtune.errors import CheckpointError
from glmtune.folder import ModelFolder
from glmtune.models.fingerprint import Fingerprint, fingerprint
from glmtune.models.shards import Stored, read_stored, scan_tensors

_BITS = "quantization_bit"
_ROWS = 16  # of a tensor are compared
_NOT_PROVEN = "that it is the model that the quantised base was made from cannot be proven"


def require_original(adapter: Path, card: Card, base: ModelFolder) -> str:
    """What is known of a base that stands for the quantised one of training; empty where it does not.

    Raises CheckpointError for a model of another kind or config, and, while the quantised folder is here,
    for one whose tensors that were not quantised are others.
    """
    recorded = card.fingerprint["config"] if card.fingerprint else {}
    if not recorded.get(_BITS):
        return ""
    problem = _other_config(card, fingerprint(base))
    quantised = Path(card.base)
    is_here = quantised.is_dir() and (quantised / "config.json").exists()
    found = _compare(quantised, base) if is_here and not problem else 0
    if found is None:
        problem = f"other weights than those of {quantised} that are not quantised"
    if problem:
        raise CheckpointError(
            f"{adapter}: {base} is not the original of the int{recorded[_BITS]} base: it has {problem}",
            hint="name the folder of the un-quantised model it was made from: base=FOLDER",
        )
    same = f", and {found} tensors that are not quantised are the same" if found else ""
    return f"{base} stands for {card.base}: same family and config{same}; {_NOT_PROVEN}"


def _other_config(card: Card, here: Fingerprint) -> str:
    if here.kind != card.kind:
        return f"the family {here.kind}, not {card.kind}"
    assert card.fingerprint is not None
    recorded = card.fingerprint["config"]
    odd = here.find_odd_key(recorded, but=(_BITS,))
    return f"{odd} {here.config.get(odd)}, not {recorded.get(odd)}" if odd else ""


def _compare(quantised: Path, base: ModelFolder) -> int | None:
    """How many floating tensors both have; None if one of them is another."""
    theirs, ours = scan_tensors(quantised), scan_tensors(base)
    shared = [
        name
        for name, at in theirs.items()
        if name in ours and at.dtype.is_floating_point and at.shape == ours[name].shape
    ]
    is_same = all(_are_close(_start(theirs[name]), _start(ours[name])) for name in shared)
    return len(shared) if is_same else None


def _are_close(one: Tensor, other: Tensor) -> bool:
    """Rounding to another 16-bit type is no difference; numbers far below the largest may lose all digits."""
    return torch.allclose(one, other, rtol=1e-2, atol=1e-4 * float(other.abs().max()))


def _start(at: Stored) -> Tensor:
    return read_stored(at)[:_ROWS].float()
