"""Attention by row on a CPU: torch's flash kernel on each row, its results joined without a mask.

What all tokens of a row see (a prefix, ChatGLM-6B's context) and what they see causally are two calls of the
kernel. Their results are joined by the logarithms of their sums of exponentials, and the kernel's backward
pass of either part, given the joined result and logarithm, is that part's share of the whole gradient.
Source: ring attention joins blocks of keys in this way, https://arxiv.org/abs/2310.01889.

Shapes: N rows, T tokens of all rows, t of one row, P prefix tokens, H query heads, G key/value heads,
R = H / G, D head size, S keys.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glmtune.models.fused import wide_type

# the kernels that `scaled_dot_product_attention` calls on a CPU; it does not give the logarithms
_ATTEND = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTEND_BACK = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def can_flash_rows(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Return True for tensors that `FlashRows` takes; the kernel has no dropout."""
    return query.device.type == "cpu" and not dropout and query.shape[-1] == value.shape[-1]


class FlashRows(torch.autograd.Function):
    """Attention inside each row, causal behind the row's prefix and context.

    It saves queries, keys, values and result once, in the type they come in, and computes half types in fp32:
    the kernel's bf16 takes two to three times as long for rows of 100 tokens, and more where a processor has
    no bf16 instructions.
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
        log_sums = query.new_empty(query.shape[:2], dtype=wide_type(query.dtype))  # (H, T)
        groups = key.shape[0]
        for i, (start, end) in enumerate(pairwise(bounds)):
            row, context = slice(start, end), contexts[i] if contexts else 0
            q = _grouped(query[:, row], groups)
            k, v = (_shared(x[:, row], q) for x in (key, value))
            seen = _seen_by_all(prefix, i, k, v, context)
            joined, log_sum = _attend_row(q, k, v, seen, context, scaling)
            out[row] = joined.flatten(0, 1).transpose(0, 1)
            log_sums[:, row] = log_sum.flatten(0, 1)
        ctx.save_for_backward(query, key, value, prefix, out, log_sums)
        ctx.bounds, ctx.contexts, ctx.scaling = bounds, contexts, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # Any: as in `forward`
        """Return the gradients of queries, keys, values and prefix."""
        query, key, value, prefix, out, log_sums = ctx.saved_tensors
        groups = key.shape[0]
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
        grad_prefix = None if prefix is None else torch.empty_like(prefix)
        num_prefix = 0 if prefix is None else prefix.shape[-2]
        for i, (start, end) in enumerate(pairwise(ctx.bounds)):
            row, context = slice(start, end), ctx.contexts[i] if ctx.contexts else 0
            q, joined, gradient = (
                _grouped(x, groups)
                for x in (query[:, row], out[row].transpose(0, 1), gradients[0][row].transpose(0, 1))
            )
            k, v = (_shared(x[:, row], q) for x in (key, value))
            seen = _seen_by_all(prefix, i, k, v, context)
            log_sum = log_sums[:, row].view(groups, -1, end - start)
            grad_q, *grad_kv = _attend_row_back(
                gradient, q, k, v, joined, log_sum, seen, context, ctx.scaling
            )
            grad_query[:, row] = grad_q.flatten(0, 1)
            for x, both in zip((grad_key, grad_value), grad_kv, strict=True):
                x[:, row] = both[:, num_prefix:]
            if grad_prefix is not None:
                for x, both in zip(grad_prefix, grad_kv, strict=True):
                    x[i] = both[:, :num_prefix]
        return grad_query, grad_key, grad_value, grad_prefix, None, None, None


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Return heads (H, t, D) by the group that shares a key: (G, R, t, D)."""
    return _own(x, wide_type(x.dtype)).view(groups, -1, *x.shape[1:])


def _shared(x: Tensor, query: Tensor) -> Tensor:
    """Return keys or values (G, t, D) for grouped queries, (G, R, t, D) without a copy for each head."""
    return _own(x, query.dtype)[:, None].expand(-1, query.shape[1], -1, -1)


def _own(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return heads (H, t, D) each in one piece."""
    # of tokens that lie far apart the kernel's backward pass takes a tenth longer, much more than the copy
    return x.to(dtype, memory_format=torch.contiguous_format)


def _seen_by_all(
    prefix: Tensor | None, i: int, key: Tensor, value: Tensor, context: int
) -> tuple[Tensor, Tensor] | None:
    """Return the keys and values (G, R, S, D) that all tokens of row `i` see: its prefix and its context."""
    if prefix is None:
        return (key[:, :, :context], value[:, :, :context]) if context else None
    seen = []
    for front, x in zip(prefix, (key, value), strict=True):
        shared = front[i].to(x.dtype)
        if context:
            shared = torch.cat((shared, x[:, 0, :context]), dim=1)
        seen.append(shared[:, None].expand(-1, x.shape[1], -1, -1))
    return seen[0], seen[1]


def _attend_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: tuple[Tensor, Tensor] | None,
    context: int,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Return the result (G, R, t, D) of a row and the logarithm of its sum of exponentials (G, R, t)."""
    if seen is None:
        out, log_sum = _ATTEND(query, key, value, 0.0, True, scale=scaling)
        return out, log_sum
    out, log_sum = _ATTEND(query, *seen, 0.0, False, scale=scaling)
    behind = slice(context, None)
    causal, causal_sum = _ATTEND(*(x[:, :, behind] for x in (query, key, value)), 0.0, True, scale=scaling)
    both = torch.logaddexp(log_sum[..., behind], causal_sum)
    out[:, :, behind] *= (log_sum[..., behind] - both).exp()[..., None]
    out[:, :, behind] += causal * (causal_sum - both).exp()[..., None]
    log_sum[..., behind] = both
    return out, log_sum


def _attend_row_back(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum: Tensor,
    seen: tuple[Tensor, Tensor] | None,
    context: int,
    scaling: float,
) -> Iterator[Tensor]:
    """Yield a row's gradients: of queries (G, R, t, D), then of keys and of values (G, P + t, D)."""
    behind = slice(context, None)
    causal = [x[:, :, behind] for x in (gradient, query, key, value, out)]
    grad_query, *grads = _ATTEND_BACK(*causal, log_sum[..., behind], 0.0, True, scale=scaling)
    if seen is None:
        yield grad_query
        yield from map(_sum_heads, grads)
        return
    all_query, *all_grads = _ATTEND_BACK(gradient, query, *seen, out, log_sum, 0.0, False, scale=scaling)
    all_query[:, :, behind] += grad_query
    yield all_query
    for both in zip(all_grads, grads, strict=True):
        yield torch.cat([_sum_heads(x) for x in both], dim=1)


def _sum_heads(x: Tensor) -> Tensor:
    """Return the gradient (G, S, D) of keys or values that R heads share, of each head's (G, R, S, D)."""
    return x.sum(1) if x.shape[1] > 1 else x[:, 0]  # ChatGLM-6B shares none: a sum of one is a slow copy
