"""The cross-entropies of logits and their gradient, written over the logits.

Shapes: L positions, V vocabulary.
"""

import torch
from torch import Tensor, nn

from glmtune.models.frozen_linear import FrozenLinear
from glmtune.models.fused import cached_blocks, wide_type
from glmtune.models.wrapped import is_hooked


def is_frozen_product(head: nn.Module) -> bool:
    """Return True for an output layer that is a product with frozen weights and nothing more."""
    is_known = isinstance(head, FrozenLinear) or type(head) is nn.Linear
    return is_known and not is_hooked(head) and not any(p.requires_grad for p in head.parameters())


@torch.no_grad()
def turn_into_gradient(logits: Tensor, targets: Tensor, *, scale: float) -> Tensor:
    """Return the sum of the cross-entropies of logits (L, V) against targets (L,), in fp32. Shape ().

    The logits are overwritten by the sum's gradient times `scale`. Float64 stays float64.
    """
    wide = wide_type(logits.dtype)
    total = logits.new_zeros((), dtype=wide)
    for block in cached_blocks(logits):
        held, at = logits[block], targets[block, None]
        rows = held.to(wide)  # the logits themselves, unless they are of a half type
        highest, said = rows.amax(dim=-1, keepdim=True), rows.gather(1, at)
        sums = rows.sub_(highest).exp_().sum(dim=-1, keepdim=True)
        total += (sums.log() + highest - said).sum()
        rows.mul_(scale / sums)  # the probabilities
        rows.scatter_add_(1, at, torch.full_like(said, -scale))
        if rows is not held:
            held.copy_(rows)
    return total
