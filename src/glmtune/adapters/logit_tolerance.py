"""When two models' logits are the same: one measure, and one table of how far apart they may be.

The measure is the largest |difference|, as a share of the largest logit. Which share is allowed
depends on what differs: the order of sums alone, the type of the weights, or how the blocks are
quantised. What rounding does was measured on the bundled glm-tiny (4 layers): fp16 3e-4, bf16 2e-3,
int8 3e-3, nf4 2e-2, int4 4e-2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SAME = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""The same numbers computed again in the same type: by other kernels, in another process, as base +
adapter in another way. fp32: only the order of sums differs, on models of a few layers below 1e-5.
16 bits: some ten times what rounding glm-tiny changes, since roundings add up over layers.

Migration had bounds of its own for this very case (fp32 3e-5, fp16 1e-2, bf16 5e-2). Its two sides
round in the same places, so 16 bits need no more than elsewhere; in fp32 it has the bound of the
others."""
ROUNDED = {torch.float32: SAME[torch.float32], torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""Weights rounded to a type against those that they were made of, both computed in fp32: an export
against base + adapter, by the roughest type that is written. Rounding adds up over layers."""
OTHER_TYPE = 0.06
"""The same weights opened, and computed, in another type than when their logits were recorded.
Generous, for it differs by model (0.045 was seen on a random ChatGLM-6B of two layers, fp32 to
fp16), and what is refused here has passed the checks of its base and of its own numbers before."""
REQUANTISED: Mapping[str | None, float] = {None: 0.0, "int8": 0.03, "nf4": 0.3, "int4": 0.4}
"""What is allowed besides where the blocks are held in another quantisation than they were, the
coarser of the two: some ten times glm-tiny's."""
NOTABLE = {torch.float32: SAME[torch.float32], torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""The other way round: a difference beyond this is more than rounding weights to a type makes (some
three times glm-tiny's), so an export must show it."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far logits are apart, and how far they may be."""

    off: float
    allowed: float

    @property
    def is_allowed(self) -> bool:
        """Whether they count as the same; nan does not."""
        return self.off <= self.allowed


def compare_logits(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], share: float, largest: float
) -> Distance:
    """Compare two models' logits of the same rows; a row of `theirs`, (T, V) or (V,), may go on longer.

    `share` is allowed of the `largest` logit.
    """
    return Distance(distance(ours, theirs), share * largest)


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest |difference| in several rows."""
    each = list(map(largest_difference, ours, theirs))
    return float(torch.tensor(each).max())  # Python's max may pass over a nan


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Of two models' logits of the same row, (T, V) each; the second may go on."""
    return float((ours - theirs[: len(ours)]).abs().max())


def largest_logit(rows: Sequence[Tensor]) -> float:
    """The largest |logit| in several rows."""
    return max(float(row.abs().max()) for row in rows)
