"""Whether floats are equal but for rounding: how far apart they are, as a share of the largest one expected.

Roundings are shares of what is rounded, and which ones happen differs from processor to processor: sums are
added up in another order. So nothing here is absolute, and no share rests on what one machine gave.
"""

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

Floats = float | Tensor | Sequence[float] | Sequence[Tensor]

ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""What is allowed by the type: of fp32 some 170 of its roundings (`torch.finfo(dtype).eps`), which sums of
thousands of numbers through a few layers take; of the half types, rounded once after each sum, 10 and 4."""


def assert_close(actual: Floats, expected: Floats, *, share: float | None = None) -> None:
    """Fail where floats are further apart than a share of the largest expected magnitude.

    Several tensors are taken together: a gradient that is zero but for rounding is measured by the others.
    `share`: by the type of what is expected, unless it is given.
    """
    allowed = ROUNDING[_joined(expected).dtype] if share is None else share
    off = distance(actual, expected)
    assert off <= allowed, f"off by {off:.3g} of the largest magnitude, allowed is {allowed:.3g}"


def distance(actual: Floats, expected: Floats) -> float:
    """The largest |difference| as a share of the largest expected magnitude."""
    assert _shapes(actual) == _shapes(expected)
    ours, theirs = _joined(actual), _joined(expected)
    assert ours.dtype == theirs.dtype
    off, largest = (float(x.abs().max()) for x in (ours.double() - theirs.double(), theirs.double()))
    if off == 0:
        return 0.0
    return off / largest if largest else inf


def _parts(floats: Floats) -> list[Tensor]:
    if isinstance(floats, Tensor):
        return [floats.detach()]
    if isinstance(floats, float):
        return [torch.tensor(floats)]  # fp32, as what models give is
    return [tensor for part in floats for tensor in _parts(part)]


def _joined(floats: Floats) -> Tensor:
    return torch.cat([part.flatten() for part in _parts(floats)])


def _shapes(floats: Floats) -> list[torch.Size]:
    return [part.shape for part in _parts(floats)]
