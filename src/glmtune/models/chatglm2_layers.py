"""The layers of ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B: norm, rotary angles, attention, MLP.

Shapes: B batch, T new tokens, S cached + new tokens, H query heads, G key/value heads, D head size, C hidden
size, F feed-forward size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.models.attention import Attend, Rotary, eager_attention
from glmtune.models.fused import Heads, rms_norm, split_and_rotate, swiglu, wide_type
from glmtune.models.packed import Rows
from glmtune.models.prefix import prepend

if TYPE_CHECKING:
    from glmtune.models.config import ChatGLMConfig


def rotate_pairs(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate each head in adjacent pairs, (0, 1), (2, 3), ..., where Llama pairs (0, D/2), ...

    x: (B, heads, T, D). The angles of a head's second half are 0.
    """
    cos, sin = rotary
    swapped = x.view(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)  # 1, 0, 3, 2, ...
    return x * cos + swapped * sin  # sin is negative for the first of a pair


class ChatGLMRMSNorm(nn.Module):
    """RMSNorm computed in fp32, with the weight multiplied before the cast back."""

    def __init__(self, config: "ChatGLMConfig") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.epsilon = config.layernorm_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last dimension of (..., C); shape and type stay."""
        if torch.is_grad_enabled():
            return rms_norm(hidden_states, self.weight, self.epsilon)
        if hidden_states.dtype == self.weight.dtype == torch.float32:  # the same to the last bit, in one call
            return functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.epsilon)
        x = hidden_states.to(wide_type(hidden_states.dtype))
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        # the weight first, the cast last: Llama's norm does it in the other order, and rounds differently
        return (self.weight * x).to(hidden_states.dtype)


class ChatGLMRotary(nn.Module):
    """Rotary angles of half of each head, without a buffer: nothing to restore after a meta-device start."""

    def __init__(self, config: "ChatGLMConfig") -> None:
        super().__init__()
        self.dim = config.head_dim // 2
        # ChatGLM3-32k, -128k and GLM-4 multiply the base, ChatGLM2-6B-32k divides the positions
        self.base = 10000.0 * (config.rope_ratio if config.rope_scaling_by == "base" else 1)
        self.divisor = config.rope_ratio if config.rope_scaling_by == "positions" else 1

    @torch.no_grad()
    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> Rotary:
        """Return cos and sin, (B, 1, T, D) each in `dtype`, of positions (B, T), for `rotate_pairs`.

        The sine of the first of each pair is negative. The angles are computed in fp32.
        """
        steps = torch.arange(0, self.dim, 2, dtype=torch.float32, device=position_ids.device)
        frequencies = 1.0 / self.base ** (steps / self.dim)
        angles = (position_ids[:, None, :, None].float() / self.divisor) * frequencies  # (B, 1, T, D/4)
        angles = functional.pad(angles, (0, self.dim // 2))  # (B, 1, T, D/2): the second half is not rotated
        sin = angles.sin()
        cos, sin = torch.stack((angles.cos(),) * 2, dim=-1), torch.stack((-sin, sin), dim=-1)
        return cos.flatten(-2).to(dtype), sin.flatten(-2).to(dtype)  # (B, 1, T, D)


class ChatGLMAttention(nn.Module):
    """Causal attention with G key/value heads shared by H query heads."""

    is_causal = True  # read by transformers' attention functions

    def __init__(self, config: "ChatGLMConfig", layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        queries, keys = self.num_heads = (config.num_attention_heads, config.num_key_value_heads)
        width = (queries + 2 * keys) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, width, bias=config.add_qkv_bias)
        self.dense = nn.Linear(queries * self.head_dim, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: Rotary,
        attention_mask: Tensor | None,
        prefix: Tensor | None = None,
        past_key_values: Cache | None = None,
        attend: Attend | None = None,
        rows: Rows | None = None,
        keep: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over (B, T, C); return (B, T, C), and the weights if the attention function has them.

        `attend` replaces the configured attention function. rows: the packed rows that T consists of; keep:
        the positions (L,) to return, (B, L, C), if not all.
        """
        # all queries, then all keys, then all values
        query, key, value = self._split(self.query_key_value(hidden_states), rotary)
        if rows is None:
            key, value = prepend(prefix, key, value)  # after the rotation: prefix keys are not rotated
        else:
            kwargs.update(rows=rows, prefix=prefix)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, G, S, D)
        attend = attend or ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        context, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        context = context.flatten(2) if keep is None else context[:, keep].flatten(2)
        return self.dense(context), weights

    def _split(self, projected: Tensor, rotary: Rotary) -> Heads:
        """Split (B, T, (H + 2 G) D) into heads; queries and keys are rotated, in one call."""
        if self.training:  # not in evaluation: in half types it rounds less often than the official code
            return split_and_rotate(projected, *rotary, self.num_heads)
        heads = projected.view(*projected.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, H + 2 G, T, D)
        queries, keys = self.num_heads
        rotated = rotate_pairs(heads[:, : queries + keys], rotary)
        return rotated[:, :queries], rotated[:, queries:], heads[:, queries + keys :]


class ChatGLMMLP(nn.Module):
    """The SwiGLU feed-forward block; its first projection makes gate and up side by side."""

    def __init__(self, config: "ChatGLMConfig") -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project (B, T, C) to (B, T, F) and back."""
        projected: Tensor = self.dense_4h_to_h(swiglu(self.dense_h_to_4h(hidden_states)))
        return projected


class ChatGLMBlock(GradientCheckpointingLayer):  # type: ignore[misc]
    """A layer: attention and MLP, each normalised before and added to the residual."""

    def __init__(self, config: "ChatGLMConfig", layer_idx: int) -> None:
        super().__init__()
        self.hidden_dropout = config.hidden_dropout
        self.input_layernorm = ChatGLMRMSNorm(config)
        self.self_attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = ChatGLMRMSNorm(config)
        self.mlp = ChatGLMMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        prefix: Tensor | None = None,
        keep: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Run the layer on (B, T, C); all arguments after `hidden_states` go to the attention.

        keep: the positions (L,) to return, (B, L, C), if not all; the others are keys and values alone.
        """
        attended, _ = self.self_attention(
            self.input_layernorm(hidden_states), rotary, mask, prefix, keep=keep, **kwargs
        )
        if keep is not None:
            hidden_states = hidden_states[:, keep]
        hidden_states = hidden_states + self._drop(attended)
        return hidden_states + self._drop(self.mlp(self.post_attention_layernorm(hidden_states)))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.hidden_dropout) if self.training else x
