"""Attention by row on a CPU: few large products for each row, and neither result nor probabilities kept.

A block of a row's queries is multiplied with all keys that its last one sees, those of prefix and context
included. The heads that share a key are rows of one product, which so sums the gradients of shared keys too.
The backward pass computes the probabilities again, from queries and keys alone.

Shapes: N rows, T tokens of all rows, n queries of a block, P prefix tokens, H query heads, G key/value heads,
R = H / G, D head size, S keys that a block sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glmtune.models.fused import wide_type

BLOCK_SCORES = 2**17
"""Most scores of a block for each thread, in fp32 half a MiB: each pass finds them in the cache."""

FEWEST_QUERIES = 32
"""The fewest queries of a block of a longer row: products of fewer are slow."""

SCORE_TENSORS = 3
"""Tensors of a block's scores that the backward pass holds at once."""

_softmax_backward = torch.ops.aten._softmax_backward_data


def can_attend_rows(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Return True for tensors that `RowAttention` takes; it has no dropout."""
    return query.device.type == "cpu" and not dropout and query.shape[-1] == value.shape[-1]


def most_score_bytes() -> int:
    """Return the most bytes of a block's scores in fp32, of rows that have more than the fewest queries."""
    return SCORE_TENSORS * 4 * BLOCK_SCORES * torch.get_num_threads()


class RowAttention(torch.autograd.Function):
    """Attention inside each row, causal behind the row's prefix and context.

    It saves queries, keys and values once, in the type they come in, and computes half types in fp32, which
    few processors multiply slower.
    """

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's context takes arbitrary attributes
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix: Tensor | None,
        bounds: tuple[int, ...],
        contexts: tuple[int, ...],
        scaling: float,
    ) -> Tensor:
        """Return the result (T, H, D) of queries (H, T, D), and keys and values (G, T, D)."""
        # values that are a part of a projection would keep all of it, unless the queries do so anyway
        if value.untyped_storage()._cdata != query.untyped_storage()._cdata:
            value = value.contiguous()
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        for block in _blocks(bounds, contexts, prefix, len(query)):
            out[block.queries] = _attend(query, key, value, prefix, block, scaling)
        ctx.save_for_backward(query, key, value, prefix)
        ctx.bounds, ctx.contexts, ctx.scaling = bounds, contexts, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # Any: as in `forward`
        """Return the gradients of queries, keys, values and prefix."""
        query, key, value, prefix = ctx.saved_tensors
        wide, front = wide_type(query.dtype), 0 if prefix is None else prefix.shape[-2]
        to_query = torch.empty_like(query)
        # added up over a row's blocks, and rounded once
        to_seen = [torch.zeros_like(x, dtype=wide) for x in (key, value)]
        to_prefix = None if prefix is None else torch.zeros_like(prefix, dtype=wide)
        for block in _blocks(ctx.bounds, ctx.contexts, prefix, len(query)):
            to_queries, *both = _differentiate(
                query, key, value, prefix, block, ctx.scaling, gradient[block.queries]
            )
            to_query[:, block.queries] = to_queries
            for i, found in enumerate(both):
                to_seen[i][:, block.keys] += found[:, front:]
                if to_prefix is not None:
                    to_prefix[i, block.row] += found[:, :front]
            del to_queries, both, found  # else they are there beside the next block's
        rounded = [x.to(key.dtype) for x in to_seen]
        return to_query, *rounded, None if to_prefix is None else to_prefix.to(prefix.dtype), None, None, None


@dataclass(slots=True)
class _Block:
    """Some of a row's queries and the row's own keys that the last of them sees, by place among T tokens."""

    row: int
    queries: slice
    keys: slice
    hidden: Tensor
    """Of the last keys, which not all queries see: -inf where one does not, else 0; n to a key."""

    def seen(self, x: Tensor, prefix: Tensor | None, which: int) -> Tensor:
        """Return keys or values (G, S, D) of all (G, T, D), in a copy; which: 0 keys, 1 values."""
        parts = [x[:, self.keys]] if prefix is None else [prefix[which, self.row], x[:, self.keys]]
        return torch.cat(parts, dim=1).to(wide_type(x.dtype))


def _blocks(
    bounds: tuple[int, ...], contexts: tuple[int, ...], prefix: Tensor | None, num_heads: int
) -> Iterator[_Block]:
    """Yield each row's queries in equal blocks of a size whose scores stay in the cache."""
    front = 0 if prefix is None else prefix.shape[-2]
    for row, (start, end) in enumerate(pairwise(bounds)):
        context = start + (contexts[row] if contexts else 0)
        most = BLOCK_SCORES * torch.get_num_threads() // (num_heads * (front + end - start))
        size = ceil((end - start) / ceil((end - start) / max(FEWEST_QUERIES, most)))
        for first in range(start, end, size):
            behind = min(first + size, end)
            last, hides = max(behind, context), max(first + 1, context)  # the first key that not all see
            hidden = torch.full((behind - first, last - hides), -torch.inf).triu_(first + 1 - hides)
            yield _Block(row, slice(first, behind), slice(start, last), hidden)


# Functions of their own: what a block takes is gone before the next one begins.


def _attend(
    query: Tensor, key: Tensor, value: Tensor, prefix: Tensor | None, block: _Block, scaling: float
) -> Tensor:
    """Return the result (n, H, D) of a block."""
    queries = _grouped(query[:, block.queries], len(key))
    keys, values = (block.seen(x, prefix, i) for i, x in enumerate((key, value)))
    found = torch.bmm(_probabilities(queries, keys.mul_(scaling), block), values)
    return found.view(len(query), -1, query.shape[2]).transpose(0, 1)


def _differentiate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: Tensor | None,
    block: _Block,
    scaling: float,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a block's queries (H, n, D), keys and values (G, S, D); gradient: (n, H, D)."""
    queries = _grouped(query[:, block.queries], len(key))
    keys, values = (block.seen(x, prefix, i) for i, x in enumerate((key, value)))
    to_found = _grouped(gradient.transpose(0, 1), len(key))
    probabilities = _probabilities(queries, keys.mul_(scaling), block)
    to_values = torch.bmm(probabilities.transpose(1, 2), to_found)
    to_probabilities = torch.bmm(to_found, values.transpose(1, 2))
    to_scores = _softmax_backward(to_probabilities, probabilities, -1, wide_type(query.dtype))
    to_queries = torch.bmm(to_scores, keys).view(len(query), -1, query.shape[2])
    to_keys = torch.bmm(to_scores.transpose(1, 2), queries).mul_(scaling)
    return to_queries, to_keys, to_values


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Return heads (H, n, D), widened, by the group that shares a key: (G, R n, D)."""
    return x.to(wide_type(x.dtype)).reshape(groups, -1, x.shape[-1])


def _probabilities(queries: Tensor, keys: Tensor, block: _Block) -> Tensor:
    """Return the share of each key in the result of each query, (G, R n, S)."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    count, width = block.hidden.shape
    scores.view(-1, count, scores.shape[-1])[..., scores.shape[-1] - width :] += block.hidden
    return scores.softmax(dim=-1)
