"""The official INT8 and INT4 weights: one scale a row, the linear layers of the blocks only.

A row's scale is its largest magnitude / (2**(bits - 1) - 1) and its codes are round(weight / scale). INT4
puts two codes in a byte: column 2j in the high four bits, column 2j + 1 in the low four, two's complement.
A weight is worth code * scale, rounded in the scale's type. Nothing is compiled at run time: the weights are
expanded to the activations' type for each product, and again in the backward pass; without one, few rows on a
CPU are multiplied by the codes as they are.

One deviation: codes stay within -127..127 and -7..7. In bf16 the largest weight of a row can come out as
127.5 scales, which officially is rounded to 128 and wraps to -128, the sign lost.

Source: huggingface.co/THUDM/chatglm-6b and chatglm3-6b, quantization.py.
Shapes: B batch, T tokens, I inputs of a layer, O its outputs.
"""

import re
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmtune.errors import CheckpointError, ConfigError
from glmtune.models.codes import Codes
from glmtune.models.products import MOST_ROWS, Kernel, find_kernel
from glmtune.quants import BITS, QUANTS, name_bits

_QUANTISED = re.compile(r"(^|\.)layers\.\d+\.(.+\.)?(query_key_value|dense|dense_h_to_4h|dense_4h_to_h)$")
_ROWS_AT_ONCE = 256  # what is held beyond the result while quantising


def check_quant(quant: str | None) -> None:
    """Raise ConfigError for a `quant` setting that is unknown."""
    if quant is not None and quant not in QUANTS:
        raise ConfigError(f"quant: unknown {quant!r}", hint=f"one of {', '.join(QUANTS)}, or leave it out")


def is_quantised(name: str) -> bool:
    """Whether the layer of this name is one that is quantised."""
    return _QUANTISED.search(name) is not None


def check_bits(bits: int, where: str) -> None:
    """Raise ConfigError, naming the place, unless weights of so many bits exist."""
    if type(bits) is not int or bits not in BITS.values():
        raise ConfigError(f"{where} = {bits!r}: weights have 8 or 4 bits", hint="official folders say 8 or 4")


@torch.no_grad()
def quantise(
    weight: Tensor,
    bits: int,
    *,
    scale_dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes, int8 (O, I) or packed (O, I/2), and scales (O,) of a weight (O, I), on `device`.

    The scales' type is the weight's unless given. A row of zeros gets scale 0 and codes 0.
    """
    device = device or weight.device
    outputs, inputs = weight.shape
    _require_pairs(inputs, bits, "a layer")
    codes = torch.empty(outputs, inputs * bits // 8, dtype=torch.int8, device=device)
    scale = torch.empty(outputs, dtype=scale_dtype or weight.dtype, device=device)
    for start in range(0, 0 if codes.is_meta else outputs, _ROWS_AT_ONCE):  # an outline has no numbers
        rows = slice(start, start + _ROWS_AT_ONCE)
        codes[rows], scale[rows] = _quantise_rows(weight[rows].to(device), bits, scale.dtype)
    return codes, scale


def _require_pairs(inputs: int, bits: int, name: str) -> None:
    if bits == 4 and inputs % 2:
        raise ConfigError(
            f"int4: {name} has {inputs} inputs, an odd number: they go in pairs", hint="use int8"
        )


def _quantise_rows(rows: Tensor, bits: int, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    largest = 2 ** (bits - 1) - 1
    scale = (rows.abs().amax(dim=-1) / largest).to(scale_dtype)
    divisor = scale.masked_fill(scale == 0, 1)  # a row below the type's smallest number is a row of zeros
    codes = (rows / divisor[:, None]).round_().clamp_(-largest, largest).to(torch.int8)
    return (codes if bits == 8 else pack(codes)), scale


def pack(codes: Tensor) -> Tensor:
    """Two codes of -8..7 in a byte, int8 (O, I) to (O, I/2): even columns high, odd columns low."""
    return (codes[..., 0::2] << 4) | (codes[..., 1::2] & 15)


def unpack(packed: Tensor) -> Tensor:
    """The codes that `pack` put together, int8 (O, I/2) to (O, I)."""
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(-2)


def dequantise(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The weight (O, I) that codes and scales are worth, in the scales' type."""
    weight = (codes if bits == 8 else unpack(codes)).to(scale.dtype)
    return weight.mul_(scale[:, None])


class _Product(torch.autograd.Function):
    """`functional.linear` on codes; what it keeps for the backward pass are the codes, not the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.bits = bits
        weight = dequantise(codes, scale, bits).to(x.dtype)
        return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, (codes, scale) = grads[0], ctx.saved_tensors
        needs_x, _, _, needs_bias, _ = ctx.needs_input_grad
        to_x = grad @ dequantise(codes, scale, ctx.bits).to(grad.dtype) if needs_x else None
        to_bias = grad.flatten(0, -2).sum(dim=0) if needs_bias else None
        return to_x, None, None, to_bias, None


class QuantizedLinear(nn.Linear):
    """A linear layer held as codes (`weight`, int8) and scales (`weight_scale`); its bias stays as it is.

    Casts (`half`, `float`, `to`) reach the scales and the bias, never the codes. Made from a dense layer; one
    on the meta device gives an empty one, to be filled.
    """

    weight_scale: nn.Parameter
    _kernel: tuple[Any, Kernel | None] | None = None

    def __init__(self, dense: nn.Linear, bits: int, scale_dtype: torch.dtype | None = None) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        self.bits = bits
        self.bias = dense.bias
        self._hold(*quantise(dense.weight, bits, scale_dtype=scale_dtype))
        # read by transformers: a layer with values is not drawn anew
        self._is_hf_initialized = not dense.weight.is_meta

    @property
    def quant(self) -> str:
        """The name of the quantisation."""
        return name_bits(self.bits)

    @property
    def held(self) -> list[nn.Parameter]:
        """What stands for the weight: codes and scales."""
        return [parameter for name, parameter in self.named_parameters(recurse=False) if name != "bias"]

    def fill(self, weight: Tensor, device: torch.device) -> None:
        """Quantise a dense weight (O, I) into this layer, on `device`; the scales keep their type."""
        self._hold(*quantise(weight, self.bits, scale_dtype=self.weight_scale.dtype, device=device))

    def _hold(self, codes: Tensor, scale: Tensor) -> None:
        self.weight = Codes(codes)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)

    def dequantise(self) -> Tensor:
        """The weight (O, I) that this layer computes with, in the scales' type."""
        return dequantise(self.weight, self.weight_scale, self.bits)

    @property
    def W_q(self) -> Tensor:  # noqa: N802
        """The codes, by the name that tells PEFT to ask `dequantize` for the weight (DoRA does).

        Source: github.com/huggingface/peft v0.21.0, utils/integrations.py, dequantize_module_weight.
        """
        return self.weight

    def dequantize(self) -> Tensor:
        """`dequantise`, by the name that PEFT calls."""
        return self.dequantise()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Every way of setting the weight (loaders', deep copies') gives codes."""
        is_bare = name == "weight" and param is not None and not param.is_floating_point()
        super().register_parameter(name, Codes(param) if is_bare else param)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, I) to (B, T, O), in the input's type or autocast's."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        rows = x.reshape(
            -1, x.shape[-1]
        )  # of (B, T, I), the product is a view, to which nothing may be added
        return self._multiply(rows).view(*x.shape[:-1], -1)

    def _multiply(self, rows: Tensor) -> Tensor:
        """(N, I) to (N, O), in the input's type."""
        kernel = self._find_kernel(rows)
        if kernel:
            return kernel.multiply(rows, self.weight_scale, self.bias)
        held = (self.weight, self.weight_scale, self.bias, self.bits)
        product: Tensor = _Product.apply(rows, *held)  # type: ignore[no-untyped-call]
        return product

    def _find_kernel(self, rows: Tensor) -> Kernel | None:
        """That of these codes, kept until they are replaced or changed in place; None: expand them."""
        is_worth_it = rows.dtype == torch.bfloat16 and len(rows) <= MOST_ROWS[self.bits]
        if torch.is_grad_enabled() or rows.device.type != "cpu" or not is_worth_it:
            return None
        codes = self.weight
        mark = (id(codes), codes.data_ptr(), 0 if codes.is_inference() else codes._version)
        if self._kernel is None or self._kernel[0] != mark:
            with torch.inference_mode(False):
                whole = codes.detach() if self.bits == 8 else unpack(codes.detach())
                self._kernel = (mark, find_kernel(whole, self.bits))
        return self._kernel[1]

    def train(self, mode: bool = True) -> Self:
        """As in torch; training needs no kernel."""
        self._kernel = None if mode else self._kernel
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not the kernel, which is of this object's codes."""
        return {name: held for name, held in self.__dict__.items() if name != "_kernel"}

    def extra_repr(self) -> str:
        """What printing the model shows of this layer."""
        return f"{super().extra_repr()}, bits={self.bits}"


def quantise_linears(model: nn.Module, bits: int, scale_dtype: torch.dtype | None = None) -> None:
    """Replace the linear layers of the model's blocks by quantised ones, one after the other, in place.

    Raises ConfigError, before the first, if a layer cannot be.
    """
    for name in name_linears(model):
        dense = model.get_submodule(name)
        assert isinstance(dense, nn.Linear)
        _require_pairs(dense.in_features, bits, name)
    replace_linears(model, lambda dense: QuantizedLinear(dense, bits, scale_dtype))


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], QuantizedLinear]) -> None:
    """Replace each layer that is quantised by what `make` gives for it, in place."""
    for name in name_linears(model):
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, make(getattr(model.get_submodule(path), leaf)))


def name_linears(model: nn.Module) -> list[str]:
    """Names of the layers that are quantised. Raises ConfigError if one is no plain linear layer."""
    found = [(name, part) for name, part in model.named_modules() if is_quantised(name)]
    for name, part in found:
        if not isinstance(part, nn.Linear):
            if hasattr(part, "base_layer"):  # PEFT's name for what an adapter lies on
                raise ConfigError(
                    f"quantize: {name} has an adapter on it",
                    hint="quantise the model first, then put the adapter on it",
                )
            raise ConfigError(
                f"quantize: {name} is a {type(part).__name__}, not a linear layer",
                hint="open the model as it is published",
            )
    return [name for name, _ in found]


def quantised_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The model's quantised layers by name; none if it is dense."""
    return {name: part for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}


def held_quant(model: nn.Module) -> str | None:
    """How the model's blocks are held: `int8`, `int4`, `nf4`, or None for dense ones."""
    return next((layer.quant for layer in quantised_layers(model).values()), None)


def is_held_as(model: nn.Module, quant: str) -> bool:
    """Whether the model's blocks are held so; False for dense ones, ConfigError for ones held otherwise."""
    held = held_quant(model)
    if held and held != quant:
        raise ConfigError(
            f"quantize: this model is {held} already, not {quant}",
            hint="open the original, unquantised model",
        )
    return held is not None


class Quantizable:
    """What a native model class needs to be quantised; comes before PreTrainedModel among its bases."""

    config: Any
    scale_dtype: ClassVar[torch.dtype | None] = None
    """Type of the scales if it is not the weight's: ChatGLM-6B's are always half."""

    def quantize(self, weight_bit_width: int) -> Self:
        """Quantise the blocks to 8 or 4 bits in place; returns the model, as the official method does.

        A model that already has so many bits stays as it is. Raises ConfigError for other numbers of bits.
        """
        check_bits(weight_bit_width, "quantize: weight_bit_width")
        assert isinstance(self, nn.Module)
        if not is_held_as(self, name_bits(weight_bit_width)):
            quantise_linears(self, weight_bit_width, self.scale_dtype)
            self.config.quantization_bit = weight_bit_width
        return self

    def save_pretrained(self, *args: Any, **settings: Any) -> None:
        """Write the model as transformers does. Raises ConfigError for nf4: no official folder holds it."""
        assert isinstance(self, nn.Module)
        held = held_quant(self)
        if held not in (None, *BITS):
            raise ConfigError(
                f"save: the model is {held}, and no folder of weights holds that",
                hint=f"save the adapter; quant={held} makes the same codes of the original folder again",
            )
        super().save_pretrained(*args, **settings)  # type: ignore[misc]

    def _init_weights(self, module: nn.Module) -> None:
        """Called by transformers for what a checkpoint lacks."""
        if isinstance(module, QuantizedLinear):
            assert isinstance(self, nn.Module)
            name = next(name for name, part in self.named_modules() if part is module)
            raise CheckpointError(
                f"{self.config.name_or_path or 'checkpoint'}: {name} is quantised and lacks a tensor",
                hint="config.json and weights must be of the same model, and complete",
            )
        super()._init_weights(module)  # type: ignore[misc]

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        """Called by transformers with what did not match; it would only warn, and cast codes to weights."""
        odd = next((name for name in loading_info.unexpected_keys if name.endswith(".weight_scale")), None)
        if odd:
            raise CheckpointError(
                f"{self.config.name_or_path or 'checkpoint'}: {odd} belongs to a pre-quantised model, but "
                "config.json makes it dense",
                hint='"quantization_bit" in config.json must be 8 or 4 then',
            )
        super()._adjust_missing_and_unexpected_keys(loading_info)  # type: ignore[misc]
