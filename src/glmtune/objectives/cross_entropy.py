"""The cross-entropies of a frozen output layer and their gradient, without the logits.

Shapes: L positions, C hidden size, V vocabulary, K listed ids of a position, b rows of a block of the
layer's weight.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmtune.models.frozen_linear import HeldLinear, blocks
from glmtune.models.fused import computing_type, wide_type, without_autocast
from glmtune.models.wrapped import is_hooked
from glmtune.objectives.targets import Likeliest, Targets, log_chances

BLOCK_NUMBERS = 2**20
"""Most numbers of a block of the weight, in fp32 4 MiB, and half the most of its logits: both stay in the
cache. With blocks of 1,024 to 4,096 rows of 768 the loss takes the same time, with 512 a tenth more."""

GPU_BLOCK_NUMBERS = 2**25
"""The same on a GPU, which wants few large products."""

LISTED_NUMBERS = 2**18
"""Most numbers of the weight's rows that are gathered at once for listed ids, in fp32 1 MiB."""


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
    target's own exponential is left out of all sums, so that nothing cancels out where its probability is
    near 1.
    """
    said, sums, highest, mixed = _read(hidden, targets[:, None], head, needs_gradient=needs_gradient)
    ahead = said - sums.log() - highest  # the logarithm of the target's chance over that of all others
    losses = -functional.logsigmoid(ahead)[:, 0]
    if not needs_gradient:
        return losses, None
    own = head.weight[targets].to(computing_type(hidden))
    return losses, mixed.div_(sums).sub_(own).mul_(torch.sigmoid(-ahead))


@torch.no_grad()
def frozen_log_chances(
    hidden: Tensor, targets: Targets, head: nn.Linear, *, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the log probabilities (L, K + 1) of the targets' ids and of the rest, and the loss's gradient.

    As `frozen_cross_entropy`, for targets that are distributions: the loss is `targets.loss` of the first.
    """
    said, sums, highest, mixed = _read(hidden, targets.ids, head, needs_gradient=needs_gradient)
    found = log_chances(torch.cat((said, sums.log() + highest), dim=1))
    if not needs_gradient:
        return found, None
    to_logits = targets.gradient(found)
    mixed.mul_(to_logits[:, -1:] / sums)
    dtype, of_position = computing_type(hidden), targets.ids.shape[1] * hidden.shape[1]
    size = max(1, LISTED_NUMBERS // of_position)
    for start in range(0, len(mixed), size):
        part = slice(start, start + size)
        own = head.weight[targets.ids[part]].to(dtype).to(mixed.dtype)  # (size, K, C)
        mixed[part] += (to_logits[part, None, :-1] @ own)[:, 0]
    return found, mixed


def _read(
    hidden: Tensor, ids: Tensor, head: nn.Linear, *, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the logits (L, K) of the ids, and of all others what makes their log sum and mean.

    Of these others: the exponentials' sum (L, 1) under the highest of their logits, that logit (L, 1), and
    the sum (L, C) of the weight's rows by the exponentials, zeros if it is not needed. The weight is read
    once, block by block, and its rows are mixed by exponentials under the highest logit so far, as attention
    does whose keys and values they are.
    """
    dtype = computing_type(hidden)
    rows, wide = hidden.to(dtype), wide_type(dtype)
    highest = rows.new_full((len(rows), 1), torch.finfo(wide).min, dtype=wide)
    said, sums, mixed = (
        torch.zeros_like(ids, dtype=wide),
        torch.zeros_like(highest),
        torch.zeros_like(rows, dtype=wide),
    )
    with without_autocast(rows.device):
        for part, weight, logits in _logits_by_block(rows, head, wide):
            is_here = (ids >= part.start) & (ids < part.stop)
            at = (ids - part.start).clamp_(0, len(weight) - 1)
            said = torch.where(is_here, logits.gather(1, at), said)
            # by the lower of two: an id that is not here is clamped to a place that may be another's
            logits.scatter_reduce_(1, at, torch.where(is_here, -torch.inf, torch.inf).to(wide), "amin")
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
    return said, sums, highest, mixed


@torch.no_grad()
def frozen_likeliest(hidden: Tensor, labels: Tensor, head: nn.Linear, number: int) -> tuple[Tensor, Tensor]:
    """Return what `likeliest` does of `head(hidden)`, (L, K) each, reading the weight as above."""
    dtype = computing_type(hidden)
    rows, wide = hidden.to(dtype), wide_type(dtype)
    most = Likeliest(labels, number, wide)
    with without_autocast(rows.device):
        for part, _, logits in _logits_by_block(rows, head, wide):
            most.add(logits, part.start)
    return most.ids, most.log_chances()


def _logits_by_block(
    rows: Tensor, head: nn.Linear, wide: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield blocks of the weight: their place, themselves (b, C), and the logits (L, b) of the rows."""
    most = most_frozen_logits(rows.device)
    numbers = min(most // 2, most // max(1, len(rows)) * rows.shape[1])
    for part, weight in blocks(head, rows.dtype, is_by_rows=True, numbers=numbers):
        bias = None if head.bias is None else head.bias[part].to(rows.dtype)
        yield part, weight, functional.linear(rows, weight, bias).to(wide)
