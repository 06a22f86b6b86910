"""W8A8 on a CPU: weights as int8, activations rounded to int8 as they come, products in int32.

It changes numbers, by about one per cent of a layer's output, so nothing chooses it by itself. A weight row
has one scale, its largest magnitude / 127, as the official int8 weights have: those keep their codes. Between
the products everything is computed in fp32, whatever the model's type is: casts would cost more than they
save, and the norms, the attention and an adapter's own layers are the more exact for it.

A product of several rows rounds them all in the range of all: each is brought to its own largest magnitude
first, so that a row beside much larger ones keeps its digits, but answers may differ a little by what else
is being answered.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.models.quant import QuantizedLinear

_MULTIPLY: Any = torch.ops.quantized.linear_dynamic.default
_SMALLEST = torch.finfo(torch.float32).tiny  # a row of zeros is divided by it


class _Unsaved(nn.Module):
    """Weights packed for one CPU's kernels: a state without them would be a model with holes."""

    def _save_to_state_dict(self, *_: Any) -> None:
        raise ConfigError(
            "a model that answers with compute=fast cannot be saved: its weights are packed for this CPU",
            hint="save the model that it was made from, which is as it was",
        )


class FastLinear(_Unsaved):
    """A linear layer in W8A8. It cannot be trained, saved or moved."""

    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        """`layer`: dense or quantised, on a CPU."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        bias = None if layer.bias is None else layer.bias.detach().float()
        self.register_buffer("bias", bias)
        self.packed = torch.ops.quantized.linear_prepack(_quantise(layer), None)
        self.has_headroom = not _has_vnni()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in the input's type."""
        return self.multiply(x.float()).to(x.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """`forward` of fp32."""
        if x.numel() == self.in_features:  # a single row is its own scale
            product: Tensor = _MULTIPLY(x, self.packed, self.has_headroom)
        else:
            scale = x.abs().amax(dim=-1, keepdim=True).clamp_min_(_SMALLEST)
            product = _MULTIPLY(x / scale, self.packed, self.has_headroom).mul_(scale)
        return product if self.bias is None else product.add_(self.bias)


class FastExperts(_Unsaved):
    """The routed experts of GLM-4.5 in W8A8."""

    def __init__(self, experts: Any) -> None:
        """`experts`: transformers' `Glm4MoeExperts`, weights (E, 2 I, C) and (E, C, I), on a CPU."""
        super().__init__()
        self.activate = experts.act_fn
        self.widen, self.narrow = (
            [FastLinear(_as_linear(weight)).multiply for weight in held.detach()]
            for held in (experts.gate_up_proj, experts.down_proj)
        )

    def forward(self, hidden_states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Tokens (N, C) through the experts chosen for each (N, k), added by their weights (N, k)."""
        mixed = torch.zeros_like(hidden_states)
        for expert in sorted(set(chosen.flatten().tolist())):
            tokens, places = torch.where(chosen == expert)
            gate, up = self.widen[expert](hidden_states[tokens]).chunk(2, dim=-1)
            found = self.narrow[expert](self.activate(gate) * up)
            mixed.index_add_(0, tokens, found * weights[tokens, places, None].float())
        return mixed


def _as_linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _quantise(layer: nn.Linear) -> Tensor:
    """A weight (O, I) as torch's quantised tensor, one scale a row."""
    held = layer.dequantise() if isinstance(layer, QuantizedLinear) else layer.weight.detach()
    weight = held.float()
    scale = (weight.abs().amax(dim=1) / 127).double()
    scale[scale == 0] = 1.0
    zeros = torch.zeros_like(scale, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per", UserWarning)  # its kernels take nothing else
        return torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)


def _has_vnni() -> bool:
    """Whether the CPU adds products of bytes in 32 bits; else activations need a bit of headroom."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_vnni") or has.get("avx_vnni"))
