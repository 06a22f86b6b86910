"""The layers of ChatGLM2, ChatGLM3 and GLM-4-9B written out.

The same products as the model's own modules, without the calls around them, which take longer than the
products of a small model. The weights are the model's own; a part that is more than it was made as (an
adapter lies on it, codes stand for its weight, something is hooked to it) is called as it is.
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

Part = Callable[[Tensor], Tensor]

_LEFT_OUT = (ChatGLMBlock, ChatGLMAttention, ChatGLMMLP)


class LeanLayers:
    """A model's layers and final norm as they were when this was made; made anew whenever prompts join."""

    def __init__(self, model: ChatGLMModel, dtype: torch.dtype) -> None:
        """`dtype`: of the embeddings that go in."""
        blocks: Any = model.encoder.layers
        self.layers = [_Layer(block, dtype) for block in blocks]
        self.final_norm = direct(model.encoder.final_layernorm, dtype)

    def run(self, hidden_states: Tensor, turn: Part, this: PromptPass | StepPass) -> Tensor:
        """Embeddings (B, T, C) through all layers; `turn` is `RotaryAngles.at`'s."""
        for layer in self.layers:
            hidden_states = layer.run(hidden_states, turn, this)
        return self.final_norm(hidden_states)


class _Layer:
    def __init__(self, block: ChatGLMBlock, dtype: torch.dtype) -> None:
        attention = block.self_attention
        self.attention = attention
        self.index = attention.layer_idx
        self.queries, keys = attention.num_heads
        self.turned = self.queries + keys
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

    def run(self, hidden_states: Tensor, turn: Part, this: PromptPass | StepPass) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        heads = self.query_key_value(self.before(hidden_states))
        heads = heads.view(*heads.shape[:2], -1, self.attention.head_dim)
        heads = heads.transpose(1, 2)  # (B, H + 2 G, T, D)
        turned = turn(heads[:, : self.turned])
        key, value = this.update(turned[:, self.queries :], heads[:, self.turned :], self.index)
        context, _ = this.attend(
            self.attention, turned[:, : self.queries], key, value, scaling=self.attention.scaling
        )
        hidden_states = hidden_states + self.dense(context.flatten(2))
        gate, up = self.widen(self.after(hidden_states)).chunk(2, dim=-1)
        return hidden_states + self.narrow(functional.silu(gate).mul_(up))


class RotaryAngles:
    """The rotary angles of all positions up to the last one used, looked up instead of computed."""

    def __init__(self, rotary: ChatGLMRotary, dtype: torch.dtype, device: torch.device) -> None:
        """`rotary`: whose angles they are; `dtype`: of the heads."""
        self.rotary = rotary
        self.dtype = dtype
        self.device = device
        self.table: tuple[Tensor, ...] = ()

    def at(self, positions: Tensor, end: int) -> Part:
        """What turns heads (B, heads, T, D) by their positions (B, T), all of them below `end`."""
        if not self.table or end > len(self.table[0]):
            self.table = self._compute(2 * end)
        found = [part[positions][:, None] for part in self.table]  # (B, 1, T, ...)
        return (
            partial(_turn, by=found[0])
            if len(found) == 1
            else partial(rotate_pairs, rotary=(found[0], found[1]))
        )

    def _compute(self, count: int) -> tuple[Tensor, ...]:
        """Cos and sin (count, D); in fp32 one complex number for each pair instead, (count, D/2)."""
        positions = torch.arange(count, device=self.device)[None]
        cos, sin = (part[0, 0] for part in self.rotary(positions, self.dtype))
        return (torch.complex(cos[:, ::2], sin[:, 1::2]),) if self.dtype == torch.float32 else (cos, sin)


def _turn(heads: Tensor, by: Tensor) -> Tensor:
    """`rotate_pairs` in one product."""
    pairs = torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * by).flatten(-2)


def _normalise(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`ChatGLMRMSNorm` with its weight in fp32, to the last bit."""
    return functional.rms_norm(x.float(), weight.shape, weight, epsilon).to(x.dtype)


def has_plain_layers(transformer: nn.Module) -> bool:
    """Whether a model's layers can be written out: its class, and that nothing hangs on what is left out."""
    if type(transformer) is not ChatGLMModel:
        return False
    left_out = (part for part in transformer.encoder.modules() if isinstance(part, _LEFT_OUT))
    return not any(map(is_hooked, left_out))


def is_hooked(part: nn.Module) -> bool:
    """Whether calling a module is more than its class's `forward`."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))


def direct(part: nn.Module, dtype: torch.dtype) -> Part:
    """What calling a module comes to for inputs of a type; the module itself if that is not all."""
    if is_hooked(part):
        return part
    held: Any = part
    call: Part = part
    if type(part) is nn.Linear:
        call = partial(functional.linear, weight=held.weight, bias=held.bias)
    elif type(part) is FastLinear and dtype == torch.float32:
        call = held.multiply
    elif type(part) is ChatGLMRMSNorm:
        call = partial(_normalise, weight=held.weight.detach().float(), epsilon=held.epsilon)
    return call
