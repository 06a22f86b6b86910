"""Attention as every family here asks for it, and written out.

Shapes: B batch, T new tokens, S cached + new tokens, H query heads, G key/value heads, D head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Rotary = tuple[Tensor, Tensor]
"""cos and sin, (B, 1, T, D) in ChatGLM2, 1 and 0 where a head is not rotated; the 1 is over all heads."""

Attend = Callable[..., tuple[Tensor, Tensor | None]]
"""An attention function in transformers' form, as `eager_attention` is."""


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, for `attn_implementation="eager"`: the only one that returns its weights.

    query: (B, H, T, D). key, value: (B, G, S, D). attention_mask: (B or 1, 1, T, S), boolean (true: may see)
    or additive. Returns context (B, T, H, D) and weights (B, H, T, S).
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights
