"""W8A8 on a CPU: weights as int8, activations rounded to int8 as they come, products in int32.

It changes numbers, by about one per cent of a layer's output, so nothing chooses it by itself. A weight row
has one scale, its largest magnitude / 127, as the official int8 weights have: those keep their codes. Between
the products everything is computed in fp32, whatever the model's type is: casts would cost more than they
save, and the norms, the attention and an adapter's own layers are the more exact for it.

Where the CPU multiplies tiles (AMX) a weight is held twice, in the order of two kernels: many rows take the
second, oneDNN's, 1.4 times as fast for 32 rows and twice for 128.

A product of several rows rounds them all in the range of all: each is brought to its own largest magnitude
first, so that a row beside much larger ones keeps its digits, but answers may differ a little by what else
is being answered.
"""

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.models.quant import QuantizedLinear
from glmtune.processor import cpu_has

_MULTIPLY: Any = torch.ops.quantized.linear_dynamic.default
_SMALLEST = torch.finfo(torch.float32).tiny  # a row of zeros is divided by it

TILE_ROWS = 32
"""From so many rows on, oneDNN's kernel is the quicker one where there is AMX."""

_MOST_AT_ONCE = 4
_Part = TypeVar("_Part")
_Packed = TypeVar("_Packed")


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
        self.tiled: Any = None
        """The weight once more, for products of many rows; `pack_all` gives it."""
        # FBGEMM adds products of bytes in 32 bits with AVX-512's VNNI alone, else two of them in 16
        self.has_headroom = not cpu_has("avx512_vnni")

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in the input's type."""
        return self.multiply(x.float()).to(x.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """`forward` of fp32."""
        rows = x.numel() // self.in_features
        packed = self.packed if rows < TILE_ROWS or self.tiled is None else self.tiled
        if rows == 1:  # its own scale
            product: Tensor = _MULTIPLY(x, packed, self.has_headroom)
        else:
            scale = x.abs().amax(dim=-1, keepdim=True).clamp_min_(_SMALLEST)
            product = _MULTIPLY(x / scale, packed, self.has_headroom).mul_(scale)
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
    scale = held.abs().amax(dim=1, keepdim=True).float() / 127
    scale[scale == 0] = 1.0
    codes = (held / scale).round_().to(torch.int8)
    scales, zeros = scale[:, 0].double(), torch.zeros(len(scale), dtype=torch.long)
    return torch._make_per_channel_quantized_tensor(codes, scales, zeros, 0)


def pack_all(pack: Callable[[_Part], _Packed], parts: Iterable[_Part]) -> list[_Packed]:
    """What `pack` makes of each part; layers in W8A8 get their tiles where the CPU has AMX."""
    packed = _at_once(pack, parts)
    engines: Any = torch.backends.quantized
    if cpu_has("amx_int8") and "onednn" in engines.supported_engines:
        before = engines.engine
        engines.engine = "onednn"  # read as a weight is packed; a product takes its weight's own
        try:
            _at_once(_add_tiles, (part for part in packed if isinstance(part, FastLinear)))
        finally:
            engines.engine = before
    return packed


def _at_once(pack: Callable[[_Part], _Packed], parts: Iterable[_Part]) -> list[_Packed]:
    """Several at a time: each takes one core, and a copy of its weight in fp32."""
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(min(torch.get_num_threads(), _MOST_AT_ONCE)) as pool,
    ):
        warnings.filterwarnings("ignore", "torch.quantize_per", UserWarning)  # its kernels take nothing else
        return list(pool.map(pack, parts))


def _add_tiles(layer: FastLinear) -> None:
    weight, _ = torch.ops.quantized.linear_unpack(layer.packed)
    layer.tiled = torch.ops.quantized.linear_prepack(weight, None)
