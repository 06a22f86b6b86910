"""The norms and SwiGLU blocks of transformers' GLM classes, computed in training by our fused functions.

Layers of a loaded model are given a subclass, so that names, files and checks of their class stay; without
gradients they compute by transformers' own code.
"""

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.glm.modeling_glm import GlmMLP, GlmRMSNorm
from transformers.models.glm4.modeling_glm4 import Glm4MLP, Glm4RMSNorm
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRMSNorm

from glmtune.models.fused import rms_norm, swiglu


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


class _GlmNorm(_Norm, GlmRMSNorm):  # type: ignore[misc]  # transformers has no types
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
