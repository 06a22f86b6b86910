"""Tolerances for comparing the logits of two models: one measure, and one table of bounds.

The measure is the largest |difference|, as a share of the largest logit. The allowed share depends on the
cause: the order of sums, the type of the weights, or the quantisation of the layers. The effect of rounding
was measured on the bundled glm-tiny (4 layers): fp16 3e-4, bf16 2e-3, int8 3e-3, nf4 2e-2, int4 4e-2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SAME = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""Bounds for the same weights computed again in the same type: by other kernels, or in another process.

fp32: only the order of sums differs; models of a few layers stay below 1e-5. 16 bits: some ten times the
effect of rounding on glm-tiny, since rounding adds up over layers."""
ROUNDED = {torch.float32: SAME[torch.float32], torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""Bounds for weights rounded to a type against the weights before rounding, both computed in fp32: an export
against base + adapter, by the roughest type in it."""
OTHER_TYPE = {torch.float32: 0.06, torch.float16: 0.06, torch.bfloat16: 0.2}
"""Bounds for the same weights held or computed in another type than at recording, by the coarser type that
computes. They are generous because models differ (on a random ChatGLM-6B of two layers 0.045 was seen from
fp32 to fp16, 0.10 to bf16); hashes of base and adapter were compared before."""
REQUANTISED: Mapping[str | None, float] = {None: 0.0, "int8": 0.03, "nf4": 0.3, "int4": 0.4}
"""Addition to a bound where the layers are quantised differently than at recording, by the coarser of the
two: some ten times the effect on glm-tiny."""
NOTABLE = {torch.float32: SAME[torch.float32], torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Differences above this share are more than rounding to a type causes (some three times glm-tiny's), so an
export must reproduce them."""


@dataclass(frozen=True, slots=True)
class Distance:
    """The difference between two models' logits, and its bound."""

    off: float
    allowed: float

    @property
    def is_allowed(self) -> bool:
        """True if the logits count as the same; nan never does."""
        return self.off <= self.allowed


def compare_logits(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], share: float, largest: float
) -> Distance:
    """Compare two models' logits of the same prompts; a row of `theirs`, (T, V) or (V,), may be longer.

    The bound is `share` times `largest`, the largest logit.
    """
    return Distance(distance(ours, theirs), share * largest)


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest |difference| over several prompts."""
    each = list(map(largest_difference, ours, theirs))
    return float(torch.tensor(each).max())  # Python's max may pass over a nan


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest |difference| of two models' logits of one prompt, (T, V); `theirs` may be longer."""
    return float((ours - theirs[: len(ours)]).abs().max())


def largest_logit(rows: Sequence[Tensor]) -> float:
    """Return the largest |logit| over several prompts."""
    return max(float(row.abs().max()) for row in rows)
