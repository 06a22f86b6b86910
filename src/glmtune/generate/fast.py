"""W8A8 on a CPU: weights as int8, activations rounded to int8 as they come, products in int32.

It changes numbers, by about one per cent of a layer's output, so nothing chooses it by itself. A weight row
has one scale, its largest magnitude / 127, as the official int8 weights have: those keep their codes. Between
the products everything is computed in fp32, whatever the model's type is: casts would cost more than they
save, and the norms, the attention and an adapter's own layers are the more exact for it.
"""

import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.models.quant import QuantizedLinear

_EXACT_PARTS = ("lora_", "prefix_encoder")
_MULTIPLY: Any = torch.ops.quantized.linear_dynamic.default


class FastLinear(nn.Module):
    """A linear layer in W8A8. It cannot be trained, saved or moved."""

    def __init__(self, layer: nn.Linear) -> None:
        """`layer`: dense or quantised, on a CPU."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        bias = None if layer.bias is None else layer.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(_quantise(layer), bias)
        self.has_headroom = not _has_vnni()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in the input's type."""
        return self.multiply(x.float()).to(x.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """`forward` of fp32."""
        product: Tensor = _MULTIPLY(x, self.packed, self.has_headroom)
        return product


class FastExperts(nn.Module):
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


def choose_compute(model: Any, compute: str) -> Any:
    """The model itself, or what answers in its place when `compute` is fast (`speed_up`)."""
    return speed_up(model) if compute == "fast" else model


def speed_up(model: Any) -> Any:
    """A copy of a model that answers in W8A8; other weights are shared with the model, which stays as it is.

    Every linear layer is replaced, the output layer too, and GLM-4.5's experts. Raises ConfigError where
    there are no kernels for it.
    """
    if model.device.type != "cpu" or torch.backends.quantized.engine != "x86":
        raise ConfigError(
            f"compute: fast is for x86 CPUs, and this is {model.device.type}, "
            f"{torch.backends.quantized.engine}",
            hint="use compute=exact; quant=int8 or int4 makes the weights smaller",
        )
    shared: dict[int, Any] = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    fast = deepcopy(model, shared).eval()
    for name, part in list(fast.named_modules()):
        if any(exact in name for exact in _EXACT_PARTS):
            continue
        if isinstance(part, nn.Linear):
            fast.set_submodule(name, FastLinear(part))
        elif hasattr(part, "gate_up_proj") and hasattr(part, "num_experts"):
            fast.set_submodule(name, FastExperts(part))
        elif isinstance(part, nn.Embedding):
            part.register_forward_hook(_give_fp32)
        else:
            _hold_in_fp32(part)
    return fast


def _give_fp32(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output.float()


def _hold_in_fp32(part: nn.Module) -> None:
    for name, held in list(part.named_parameters(recurse=False)):
        if held.is_floating_point() and held.dtype != torch.float32:
            part.register_parameter(name, nn.Parameter(held.detach().float(), requires_grad=False))


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
