"""W8A8 on a CPU: int8 weights, activations rounded to int8 on the fly, products summed in int32.

A layer's output changes by about one per cent, so only the user chooses it. Each weight row has one scale,
its largest magnitude / 127, like the official int8 weights: those keep their codes. Between the products
everything is computed in fp32, whatever the model's type: casts would cost more than they save, and norms,
attention and an adapter's own layers are more exact.

On a CPU with AMX a weight is held twice, in the layouts of two kernels: large batches use oneDNN's, 1.4 times
as fast for 32 rows and twice for 128.

The kernels quantise all rows of a product with one scale. So each row is first divided by its own largest
magnitude: a small row next to a large one keeps its digits. Still, an answer may differ a little by the other
rows of the batch.
"""

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.models.computing import sum_experts
from glmtune.models.quant import QuantizedLinear
from glmtune.processor import cpu_has

_MULTIPLY: Any = torch.ops.quantized.linear_dynamic.default
_SMALLEST = torch.finfo(torch.float32).tiny  # in place of 0, as the divisor of a row of zeros

TILE_ROWS = 32
"""Number of rows from which oneDNN's kernel is faster, on a CPU with AMX."""

_MAX_THREADS = 4
_Part = TypeVar("_Part")
_Packed = TypeVar("_Packed")


class _Unsaved(nn.Module):
    """A module with weights packed for this CPU: no state dict holds them, so saving raises."""

    def _save_to_state_dict(self, *_: object) -> None:
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
        self.tiled: Any = None
        """The weight in oneDNN's layout, for large batches; `pack_all` sets it."""
        # FBGEMM sums byte products in 32 bits only with AVX-512 VNNI; else pairs of them in 16 bits, which
        # overflow unless activations use 7 bits (torch's `reduce_range`)
        self.has_headroom = not cpu_has("avx512_vnni")

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., I) to (..., O), in the input's type."""
        return self.multiply(x.float()).to(x.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """`forward` of fp32 input, without casts."""
        rows = x.numel() // self.in_features
        packed = self.packed if rows < TILE_ROWS or self.tiled is None else self.tiled
        if rows == 1:  # the kernel's one scale is this row's own
            product: Tensor = _MULTIPLY(x, packed, self.has_headroom)
        else:
            scale = x.abs().amax(dim=-1, keepdim=True).clamp_min_(_SMALLEST)
            product = _MULTIPLY(x / scale, packed, self.has_headroom).mul_(scale)
        return product if self.bias is None else product.add_(self.bias)


class FastExperts(_Unsaved):
    """The routed experts of GLM-4.5 in W8A8."""

    def __init__(self, experts: nn.Module) -> None:
        """`experts`: transformers' `Glm4MoeExperts`, weights (E, 2 I, C) and (E, C, I), on a CPU."""
        super().__init__()
        untyped: Any = experts
        self.activate = untyped.act_fn
        expert_layers = []
        for stacked in (untyped.gate_up_proj, untyped.down_proj):
            products = []
            for weight in stacked.detach():  # (O, I) of one expert
                layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
                layer.weight = nn.Parameter(weight, requires_grad=False)
                products.append(FastLinear(layer).multiply)
            expert_layers.append(products)
        self.widen, self.narrow = expert_layers

    def forward(self, hidden_states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Run tokens (N, C) through their `chosen` experts (N, k); sum the results by `weights` (N, k)."""
        return sum_experts(self._run, hidden_states, chosen, weights)

    def _run(self, expert: int, rows: Tensor) -> Tensor:
        gate, up = self.widen[expert](rows).chunk(2, dim=-1)
        return self.narrow[expert](self.activate(gate) * up)


def _quantise(layer: nn.Linear) -> Tensor:
    """Return a layer's weight (O, I) as torch's quantised tensor, with one scale per row."""
    weight = layer.dequantise() if isinstance(layer, QuantizedLinear) else layer.weight.detach()
    scale = weight.abs().amax(dim=1, keepdim=True).float() / 127
    scale[scale == 0] = 1.0
    codes = (weight / scale).round_().to(torch.int8)
    scales, zeros = scale[:, 0].double(), torch.zeros(len(scale), dtype=torch.long)
    return torch._make_per_channel_quantized_tensor(codes, scales, zeros, 0)


def pack_all(pack: Callable[[_Part], _Packed], parts: Iterable[_Part]) -> list[_Packed]:
    """Return `pack(part)` of each part, in parallel; with AMX, `FastLinear`s get their second layout."""
    packed = _at_once(pack, parts)
    engines: Any = torch.backends.quantized
    if cpu_has("amx_int8") and "onednn" in engines.supported_engines:
        before = engines.engine
        engines.engine = "onednn"  # decides the layout at packing; a product runs in its weight's layout
        try:
            _at_once(_add_tiles, (part for part in packed if isinstance(part, FastLinear)))
        finally:
            engines.engine = before
    return packed


def _at_once(pack: Callable[[_Part], _Packed], parts: Iterable[_Part]) -> list[_Packed]:
    # few threads: each holds a copy of a weight in fp32
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(min(torch.get_num_threads(), _MAX_THREADS)) as pool,
    ):
        # deprecated in torch, but its x86 kernels take no other tensors
        warnings.filterwarnings("ignore", "torch.quantize_per", UserWarning)
        return list(pool.map(pack, parts))


def _add_tiles(layer: FastLinear) -> None:
    weight, _ = torch.ops.quantized.linear_unpack(layer.packed)
    layer.tiled = torch.ops.quantized.linear_prepack(weight, None)
