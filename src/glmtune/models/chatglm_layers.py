"""The layers of ChatGLM-6B (v1): rotary angles, attention, MLP, and the residual around them.

Shapes: B batch, T new tokens, S cached + new tokens, H heads, D head size, C hidden size, R rows of
positions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.models.attention import Attend, Rotary, eager_attention
from glmtune.models.chatglm_config import ChatGLM6BConfig
from glmtune.models.packed import Rows
from glmtune.models.prefix import prepend

ALPHA = (2 * 28) ** 0.5
"""Weight of the residual. The official code counts 28 layers whatever the config says: a quirk kept here."""


def rotate_halves(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate each of a head's R parts by its own row of positions, pairing i with i + D/2R inside the part.

    x: (B, H, T, D). rotary: (B, T, R, D/2R) each.
    """
    cos, sin = (part[:, None] for part in rotary)  # (B, 1, T, R, D/2R): the same for all heads
    a, b = x.view(*x.shape[:-1], cos.shape[-2], 2, cos.shape[-1]).unbind(-2)  # (B, H, T, R, D/2R) each
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-2).flatten(-3)  # (B, H, T, D)


class ChatGLM6BRotary(nn.Module):
    """Rotary angles for R rows of positions; no buffer, so nothing to restore after a meta-device start."""

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__()
        self.dim = config.head_dim // (2 if config.position_encoding_2d else 1)

    @torch.no_grad()
    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> Rotary:
        """Return cos and sin, (B, T, R, D/2R) each in `dtype`, of positions (B, R, T)."""
        steps = torch.arange(0, self.dim, 2, dtype=torch.float32, device=position_ids.device)
        # a quirk kept: the official code rounds frequencies to fp16 whatever the model's type is
        frequencies = (1.0 / 10000.0 ** (steps / self.dim)).half().float()
        # positions in fp32, as fp16 is exact up to 2048 only
        angles = position_ids.transpose(1, 2)[..., None].float() * frequencies
        return angles.cos().to(dtype), angles.sin().to(dtype)


class ChatGLM6BAttention(nn.Module):
    """Attention under a given mask; one projection makes query, key and value of each head."""

    is_causal = False  # read by transformers' attention functions: without a mask every token sees all

    def __init__(self, config: ChatGLM6BConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

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
        heads = self.query_key_value(hidden_states)  # (B, T, 3 C)
        # q, k, v lie side by side per head, so a head is split off first: (H, 3 D), not (3, H, D)
        heads = heads.view(*heads.shape[:2], -1, 3 * self.head_dim)  # (B, T, H, 3 D)
        query, key, value = heads.transpose(1, 2).chunk(3, dim=-1)  # (B, H, T, D) each
        query, key = rotate_halves(query, rotary), rotate_halves(key, rotary)
        if rows is None:
            key, value = prepend(prefix, key, value)  # after the rotation: prefix keys are not rotated
        else:
            kwargs.update(rows=rows, prefix=prefix)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, H, S, D)
        attend = attend or ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        context, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        context = context.flatten(2) if keep is None else context[:, keep].flatten(2)
        return self.dense(context), weights


class ChatGLM6BMLP(nn.Module):
    """The feed-forward block: two projections with the tanh form of GELU between them."""

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project (B, T, C) to (B, T, 4 C) and back."""
        projected: Tensor = self.dense_4h_to_h(
            functional.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh")
        )
        return projected


class ChatGLM6BBlock(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers has no types
    """A layer: attention and MLP, each added to `ALPHA` times its *normalised* input."""

    def __init__(self, config: ChatGLM6BConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = build_norm(config)
        self.attention = ChatGLM6BAttention(config, layer_idx)
        self.post_attention_layernorm = build_norm(config)
        self.mlp = ChatGLM6BMLP(config)

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
        # the residual starts behind the norm, not in front of it as in later GLMs
        x = self.input_layernorm(hidden_states)
        attended, _ = self.attention(x, rotary, mask, prefix, keep=keep, **kwargs)
        if keep is not None:
            x = x[:, keep]
        x = self.post_attention_layernorm(x * ALPHA + attended)
        out: Tensor = x * ALPHA + self.mlp(x)
        return out


class ChatGLM6BNorm(nn.LayerNorm):
    """A layer norm in the type of its input, whatever type its weights are held in."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Normalise the last dimension of (..., C); shape and type stay."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


def build_norm(config: ChatGLM6BConfig) -> nn.LayerNorm:
    """Build a layer norm over the hidden size."""
    return ChatGLM6BNorm(config.hidden_size, eps=config.layernorm_epsilon)
