"""The forward pass of ChatGLM2, ChatGLM3 and GLM-4-9B layers as plain function calls.

The same products as the model's modules, without the overhead of `nn.Module` calls, which take longer than
the products of a small model. The weights are the model's own. A module that does more than its class (an
adapter on it, quantised codes, a hook) is called as a module.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmtune.generate.fast import FastLinear
from glmtune.generate.passes import PromptPass, StepPass
from glmtune.models.chatglm2 import ChatGLMModel
from glmtune.models.chatglm2_layers import (
    ChatGLMAttention,
    ChatGLMBlock,
    ChatGLMMLP,
    ChatGLMRMSNorm,
    ChatGLMRotary,
    rotate_pairs,
)
from glmtune.models.wrapped import is_hooked

Part = Callable[[Tensor], Tensor]

_NOT_CALLED = (ChatGLMBlock, ChatGLMAttention, ChatGLMMLP)
"""Modules whose `forward` is skipped: only the layers inside them are called."""


class LeanLayers:
    """The layers and final norm as they are now; rebuilt at each prefill, as an adapter may come or go."""

    def __init__(self, model: ChatGLMModel, dtype: torch.dtype) -> None:
        """`dtype`: type of the embeddings, and so of the hidden states."""
        blocks: Any = model.encoder.layers
        self.layers = [_Layer(block, dtype) for block in blocks]
        self.final_norm = direct(model.encoder.final_layernorm, dtype)

    def run(self, hidden_states: Tensor, rotate: Part, kv_pass: PromptPass | StepPass) -> Tensor:
        """Run embeddings (B, T, C) through all layers; `rotate` comes from `RotaryAngles.at`."""
        for layer in self.layers:
            hidden_states = layer.run(hidden_states, rotate, kv_pass)
        return self.final_norm(hidden_states)


class _Layer:
    def __init__(self, block: ChatGLMBlock, dtype: torch.dtype) -> None:
        attention = block.self_attention
        self.attention = attention
        self.index = attention.layer_idx
        self.num_queries, num_keys = attention.num_heads
        self.num_rotated = self.num_queries + num_keys  # queries and keys are rotated, values are not
        self.before, self.after = (
            direct(norm, dtype) for norm in (block.input_layernorm, block.post_attention_layernorm)
        )
        self.query_key_value, self.dense, self.widen, self.narrow = (
            direct(layer, dtype)
            for layer in (
                attention.query_key_value,
                attention.dense,
                block.mlp.dense_h_to_4h,
                block.mlp.dense_4h_to_h,
            )
        )

    def run(self, hidden_states: Tensor, rotate: Part, kv_pass: PromptPass | StepPass) -> Tensor:
        """Run one block, (B, T, C) to (B, T, C)."""
        heads = self.query_key_value(self.before(hidden_states))
        heads = heads.view(*heads.shape[:2], -1, self.attention.head_dim)
        heads = heads.transpose(1, 2)  # (B, H + 2 G, T, D)
        rotated = rotate(heads[:, : self.num_rotated])
        key, value = kv_pass.update(rotated[:, self.num_queries :], heads[:, self.num_rotated :], self.index)
        context, _ = kv_pass.attend(
            self.attention, rotated[:, : self.num_queries], key, value, scaling=self.attention.scaling
        )
        hidden_states = hidden_states + self.dense(context.flatten(2))  # (B, T, H, D) to (B, T, H D)
        gate, up = self.widen(self.after(hidden_states)).chunk(2, dim=-1)
        # in place: `silu` has made a tensor that nothing else uses
        return hidden_states + self.narrow(functional.silu(gate).mul_(up))


class RotaryAngles:
    """A table of the rotary angles of all positions used so far."""

    def __init__(self, rotary: ChatGLMRotary, dtype: torch.dtype, device: torch.device) -> None:
        """`rotary`: computes the angles; `dtype`: type of the heads."""
        self.rotary = rotary
        self.dtype = dtype
        self.device = device
        self.table: tuple[Tensor, ...] = ()

    def at(self, positions: Tensor, end: int) -> Part:
        """Return a function that rotates heads (B, heads, T, D) to their positions (B, T), all < `end`."""
        if not self.table or end > len(self.table[0]):
            # twice as long as needed, so that not every step computes it
            all_positions = torch.arange(2 * end, device=self.device)[None]
            cos, sin = (part[0, 0] for part in self.rotary(all_positions, self.dtype))  # (2 end, D)
            # fp32: one complex number per pair, (2 end, D/2); torch has no complex bf16
            is_complex = self.dtype == torch.float32
            self.table = (torch.complex(cos[:, ::2], sin[:, 1::2]),) if is_complex else (cos, sin)
        angles = [part[positions][:, None] for part in self.table]  # (B, 1, T, ...)
        if len(angles) == 1:
            return partial(_rotate_complex, by=angles[0])
        return partial(rotate_pairs, rotary=(angles[0], angles[1]))


def _rotate_complex(heads: Tensor, by: Tensor) -> Tensor:
    """`rotate_pairs` as one complex product."""
    pairs = torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * by).flatten(-2)


def _normalise(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`ChatGLMRMSNorm`, equal to the last bit, with the weight cast to fp32 beforehand."""
    return functional.rms_norm(x.float(), weight.shape, weight, epsilon).to(x.dtype)


def has_plain_layers(transformer: nn.Module) -> bool:
    """True if `LeanLayers` can run a model: its class, and no hook on a module whose `forward` is skipped."""
    if type(transformer) is not ChatGLMModel:  # not isinstance: a subclass may compute something else
        return False
    not_called = (part for part in transformer.encoder.modules() if isinstance(part, _NOT_CALLED))
    return not any(map(is_hooked, not_called))


def direct(part: nn.Module, dtype: torch.dtype) -> Part:
    """Return a function equal to calling the module on inputs of `dtype`; else the module itself."""
    if is_hooked(part):
        return part
    module: Any = part
    call: Part = part
    if type(part) is nn.Linear:
        call = partial(functional.linear, weight=module.weight, bias=module.bias)
    elif type(part) is FastLinear and dtype == torch.float32:
        call = module.multiply
    elif type(part) is ChatGLMRMSNorm:
        call = partial(_normalise, weight=module.weight.detach().float(), epsilon=module.epsilon)
    return call
