"""The attention interface that every native model calls, and the eager implementation of it.

Shapes: B batch, T new tokens, S cached + new tokens, H query heads, G key/value heads, D head size.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Rotary = tuple[Tensor, Tensor]
"""Cos and sin of the rotary angles: (B, 1, T, D) each in ChatGLM2, 1 and 0 where a head is not rotated."""

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""An attention function with the signature of transformers' own, as `eager_attention` has it."""


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Compute attention step by step, for `attn_implementation="eager"`, and return its weights too.

    query: (B, H, T, D). key, value: (B, G, S, D). attention_mask: (B or 1, 1, T, S), boolean (true: may see)
    or additive. Returns context (B, T, H, D) and weights (B, H, T, S).
    """
    repeats = query.shape[1] // key.shape[1]  # H / G query heads share one key/value head
    key, value = (
        key.repeat_interleave(repeats, dim=1),
        value.repeat_interleave(repeats, dim=1),
    )  # (B, H, S, D)
    scores = query @ key.transpose(-1, -2) * scaling  # (B, H, T, S)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        # the smallest finite number, not -inf: a fully masked row stays uniform instead of NaN
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(
        query.dtype
    )  # half precision would lose the tail
    weights = functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights
