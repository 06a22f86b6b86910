"""W8A8 on a CPU: weights as int8, activations rounded to int8 as they come, products in int32.

It changes numbers, by about one per cent of a layer's output, so nothing chooses it by itself. A weight row
has one scale, its largest magnitude / 127, as the official int8 weights have: those keep their codes. The
embedding, the norms, the attention and an adapter's own layers stay exact.
"""

import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.models.quant import QuantizedLinear

_EXACT_PARTS = ("lora_", "prefix_encoder")


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
        product: Tensor = torch.ops.quantized.linear_dynamic(x.float(), self.packed, self.has_headroom)
        return product.to(x.dtype)


def choose_compute(model: Any, compute: str) -> Any:
    """The model itself, or what answers in its place when `compute` is fast (`speed_up`)."""
    return speed_up(model) if compute == "fast" else model


def speed_up(model: Any) -> Any:
    """A copy of a model that answers in W8A8; other weights are shared with the model, which stays as it is.

    Every linear layer is replaced, the output layer too; not the experts of GLM-4.5, which are none. Raises
    ConfigError where there are no kernels for it.
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
        if isinstance(part, nn.Linear) and not any(exact in name for exact in _EXACT_PARTS):
            path, _, leaf = name.rpartition(".")
            setattr(fast.get_submodule(path), leaf, FastLinear(part))
    return fast


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
