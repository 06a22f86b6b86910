"""The cross-entropies of a frozen output layer and their gradient, without the logits.

Shapes: L positions, C hidden size, V vocabulary, b rows of a block of the layer's weight.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmtune.models.frozen_linear import HeldLinear, blocks
from glmtune.models.fused import computing_type, wide_type, without_autocast
from glmtune.models.wrapped import is_hooked

BLOCK_NUMBERS = 2**20
"""Most numbers of a block of the weight, in fp32 4 MiB, and half the most of its logits: both stay in the
cache. With blocks of 1,024 to 4,096 rows of 768 the loss takes the same time, with 512 a tenth more."""

GPU_BLOCK_NUMBERS = 2**25
"""The same on a GPU, which wants few large products."""


def is_frozen_product(head: nn.Module) -> bool:
    """Return True for an output layer that is a product with frozen weights and nothing more."""
    is_known = type(head) in (nn.Linear, HeldLinear)
    return is_known and not is_hooked(head) and not any(p.requires_grad for p in head.parameters())


def most_frozen_logits(device: torch.device) -> int:
    """Return the most logits of a frozen output layer that are computed at once."""
    return 2 * (BLOCK_NUMBERS if device.type == "cpu" else GPU_BLOCK_NUMBERS)


@torch.no_grad()
def frozen_cross_entropy(
    hidden: Tensor, targets: Tensor, head: nn.Linear, *, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the cross-entropies (L,) of `head(hidden)` against targets (L,), and the gradient of their sum.

    hidden: (L, C). Both results are in fp32, or float64; the gradient (L, C) is None if it is not needed. The
    weight is read once, block by block, and its rows are mixed by exponentials under the highest logit so
    far, as attention does whose keys and values they are. The target's own is left out of these sums, so
    that nothing cancels out where its probability is near 1.
    """
    dtype, where = computing_type(hidden), targets[:, None]
    rows, wide = hidden.to(dtype), wide_type(dtype)
    highest = rows.new_full((len(rows), 1), torch.finfo(wide).min, dtype=wide)
    said, sums, mixed = (
        torch.zeros_like(highest),
        torch.zeros_like(highest),
        torch.zeros_like(rows, dtype=wide),
    )
    most = most_frozen_logits(rows.device)
    numbers = min(most // 2, most // max(1, len(rows)) * rows.shape[1])
    with without_autocast(rows.device):
        for part, weight in blocks(head, dtype, is_by_rows=True, numbers=numbers):
            bias = None if head.bias is None else head.bias[part].to(dtype)
            logits = functional.linear(rows, weight, bias).to(wide)  # (L, b)
            is_here = (where >= part.start) & (where < part.stop)
            at = (where - part.start).clamp_(0, len(weight) - 1)
            found = logits.gather(1, at)
            said = torch.where(is_here, found, said)
            logits.scatter_(1, at, found.masked_fill_(is_here, -torch.inf))
            higher = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
            shrunk, highest = (highest - higher).exp_(), higher
            others = logits.sub_(higher).exp_()
            sums.mul_(shrunk).add_(others.sum(dim=1, keepdim=True))
            if needs_gradient:
                mixed.mul_(shrunk)
                if dtype == wide:
                    mixed.addmm_(others, weight)
                else:
                    mixed += others.to(dtype) @ weight
    ahead = said - sums.log() - highest  # the logarithm of the target's chance over that of all others
    losses = -functional.logsigmoid(ahead)[:, 0]
    if not needs_gradient:
        return losses, None
    own = head.weight[targets].to(dtype)
    return losses, mixed.div_(sums).sub_(own).mul_(torch.sigmoid(-ahead))
