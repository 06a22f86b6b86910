"""The layers, norms and SwiGLU blocks of transformers' GLM classes, as they compute in training here.

Layers of a loaded model are given a subclass, so that names, files and checks of their class stay; without
gradients they compute by transformers' own code.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.glm.modeling_glm import GlmDecoderLayer, GlmMLP, GlmRMSNorm
from transformers.models.glm4.modeling_glm4 import Glm4DecoderLayer, Glm4MLP, Glm4RMSNorm
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeDecoderLayer, Glm4MoeRMSNorm

from glmtune.models.fused import rms_norm, swiglu
from glmtune.models.packed import Keeping


class _Norm(nn.Module):
    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last dimension of (..., C)."""
        if torch.is_grad_enabled():
            return rms_norm(hidden_states, self.weight, self.variance_epsilon, rounds_first=True)
        normed: Tensor = super().forward(hidden_states)
        return normed


class _MLP(nn.Module):
    gate_up_proj: nn.Module
    down_proj: nn.Module
    activation_fn: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project (B, T, C) to gate and up, and their product back."""
        projected: Tensor
        if torch.is_grad_enabled() and isinstance(self.activation_fn, nn.SiLU | SiLUActivation):
            projected = self.down_proj(swiglu(self.gate_up_proj(hidden_states)))
        else:
            projected = super().forward(hidden_states)
        return projected


class _KeepingLayer(Keeping, nn.Module):
    self_attn: Any  # Any: a class of transformers, which has no types
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(self, hidden_states: Tensor, *, keep: Tensor | None = None, **kwargs: object) -> Tensor:
        """Run the layer on (1, T, C); keep: the positions (L,) that the last layer returns, (1, L, C)."""
        if keep is None or self.self_attn.layer_idx < self.self_attn.config.num_hidden_layers - 1:
            whole: Tensor = super().forward(hidden_states, **kwargs)
            return whole
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states[:, keep] + self.norm_attended(attended[:, keep])
        return hidden_states + self.norm_projected(self.mlp(self.post_attention_layernorm(hidden_states)))

    def norm_attended(self, x: Tensor) -> Tensor:
        """Return what is added of the attention's result."""
        return x

    def norm_projected(self, x: Tensor) -> Tensor:
        """Return what is added of the MLP's result."""
        return x


class _GlmLayer(_KeepingLayer, GlmDecoderLayer):  # type: ignore[misc]  # transformers has no types
    pass


class _Glm4Layer(_KeepingLayer, Glm4DecoderLayer):  # type: ignore[misc]
    post_self_attn_layernorm: nn.Module
    post_mlp_layernorm: nn.Module

    def norm_attended(self, x: Tensor) -> Tensor:
        normed: Tensor = self.post_self_attn_layernorm(x)
        return normed

    def norm_projected(self, x: Tensor) -> Tensor:
        normed: Tensor = self.post_mlp_layernorm(x)
        return normed


class _Glm4MoeLayer(_KeepingLayer, Glm4MoeDecoderLayer):  # type: ignore[misc]
    pass


class _GlmNorm(_Norm, GlmRMSNorm):  # type: ignore[misc]
    pass


class _Glm4Norm(_Norm, Glm4RMSNorm):  # type: ignore[misc]
    pass


class _Glm4MoeNorm(_Norm, Glm4MoeRMSNorm):  # type: ignore[misc]
    pass


class _GlmMLP(_MLP, GlmMLP):  # type: ignore[misc]
    pass


class _Glm4MLP(_MLP, Glm4MLP):  # type: ignore[misc]
    pass


_FUSED: dict[type, type] = {
    GlmDecoderLayer: _GlmLayer,
    Glm4DecoderLayer: _Glm4Layer,
    Glm4MoeDecoderLayer: _Glm4MoeLayer,
    GlmRMSNorm: _GlmNorm,
    Glm4RMSNorm: _Glm4Norm,
    Glm4MoeRMSNorm: _Glm4MoeNorm,
    GlmMLP: _GlmMLP,
    Glm4MLP: _Glm4MLP,
}


def fuse_upstream(model: nn.Module) -> None:
    """Have a model's layers of the classes in the table compute by our functions in training, in place."""
    for part in model.modules():
        if type(part) in _FUSED:
            part.__class__ = _FUSED[type(part)]
