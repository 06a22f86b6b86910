"""The official INT8 and INT4 weights: one scale a row, the linear layers of the blocks only.

A row's scale is its largest magnitude / (2**(bits - 1) - 1) and its codes are round(weight / scale). INT4
puts two codes in a byte: column 2j in the high four bits, column 2j + 1 in the low four, two's complement.
A weight is code * scale, rounded in the scale's dtype. Nothing is compiled at run time: weights are
dequantised to the activations' dtype for each product, and again in the backward pass, on a CPU block by
block (`frozen_linear`); without gradients, few rows on a CPU are multiplied by the codes as they are
(`products`).

A deviation from the official code: codes stay within -127..127 and -7..7. In bf16 the largest weight of a row
can come out as 127.5 scales, which officially is rounded to 128 and wraps to -128, the sign lost.

Source: huggingface.co/THUDM/chatglm-6b and chatglm3-6b, quantization.py.
Shapes: B batch, T tokens, I inputs of a layer, O its outputs.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from glmtune.errors import CheckpointError, ConfigError
from glmtune.models.codes import Codes
from glmtune.models.expanding import write_weight
from glmtune.models.frozen_linear import FrozenLinear
from glmtune.models.products import FP32_ROWS, MOST_ROWS, Kernel, find_kernel
from glmtune.models.triton_products import multiply_codes, multiply_codes_back
from glmtune.quants import BITS, QUANTS, name_bits

if TYPE_CHECKING:
    from transformers.utils.loading_report import LoadStateDictInfo

_QUANTISED = re.compile(
    r"(^|\.)layers\.\d+\."
    r"((.+\.)?(query_key_value|dense|dense_h_to_4h|dense_4h_to_h)"  # the official code's names
    # transformers' names; the experts of GLM-4.5, one by one in the files, are no layers of its class
    r"|(self_attn|mlp|mlp\.shared_experts)\.([qkvo]_proj|gate_up_proj|gate_proj|up_proj|down_proj))$"
)
_ROWS_AT_ONCE = 256  # bounds the memory beyond the result while quantising


def check_quant(quant: str | None) -> None:
    """Raise ConfigError for an unknown `quant` setting; None, for no quantisation, passes."""
    if quant is not None and quant not in QUANTS:
        raise ConfigError(f"quant: unknown {quant!r}", hint=f"one of {', '.join(QUANTS)}, or leave it out")


def is_quantised(name: str) -> bool:
    """Return True for the name of a layer that quantisation applies to: the blocks' linear layers."""
    return _QUANTISED.search(name) is not None


def check_bits(bits: int, where: str) -> None:
    """Raise ConfigError, which begins with `where`, unless `bits` is 8 or 4."""
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
    """Quantise a weight (O, I) to codes, int8 (O, I) or packed (O, I/2), and scales (O,), on `device`.

    scale_dtype: by default the weight's. A row of zeros gets scale 0 and codes 0. Raises ConfigError for 4
    bits with an odd I.
    """
    device = device or weight.device
    outputs, inputs = weight.shape
    _require_pairs(inputs, bits, "a layer")
    largest = 2 ** (bits - 1) - 1
    codes = torch.empty(outputs, inputs * bits // 8, dtype=torch.int8, device=device)
    scale = torch.empty(outputs, dtype=scale_dtype or weight.dtype, device=device)
    for start in range(0, 0 if codes.is_meta else outputs, _ROWS_AT_ONCE):  # an outline has no numbers
        rows = slice(start, start + _ROWS_AT_ONCE)
        part = weight[rows].to(device)
        part_scale = (part.abs().amax(dim=-1) / largest).to(scale.dtype)  # (rows,)
        # a row below the dtype's smallest number has scale 0: divide by 1, which rounds it to zeros
        divisor = part_scale.masked_fill(part_scale == 0, 1)
        part_codes = (part / divisor[:, None]).round_().clamp_(-largest, largest).to(torch.int8)
        codes[rows], scale[rows] = (part_codes if bits == 8 else pack(part_codes)), part_scale
    return codes, scale


def _require_pairs(inputs: int, bits: int, name: str) -> None:
    if bits == 4 and inputs % 2:
        raise ConfigError(
            f"int4: {name} has {inputs} inputs, an odd number: they go in pairs", hint="use int8"
        )


def pack(codes: Tensor) -> Tensor:
    """Pack two codes of -8..7 into a byte, int8 (O, I) to (O, I/2): even columns high, odd columns low."""
    return (codes[..., 0::2] << 4) | (codes[..., 1::2] & 15)


def unpack(packed: Tensor) -> Tensor:
    """Unpack the codes that `pack` made, int8 (O, I/2) to (O, I)."""
    # an int8 shift to the right copies the sign, so each half comes out as -8..7
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(-2)


def dequantise(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the weight (O, I) that codes and scales stand for, in the scales' dtype."""
    outputs, packed = codes.shape
    weight = torch.empty(outputs, packed * 8 // bits, dtype=scale.dtype, device=scale.device)
    write_weight(weight, codes, scale, bits)
    return weight


class QuantizedLinear(FrozenLinear):
    """A linear layer held as codes (`weight`, int8) and scales (`weight_scale`); its bias stays as it is.

    Casts (`half`, `float`, `to`) reach the scales and the bias, never the codes. Made from a dense layer; a
    dense layer on the meta device makes an empty one, for `fill`.
    """

    weight_scale: nn.Parameter
    _kernel: tuple[Any, Kernel | None] | None = None

    def __init__(self, dense: nn.Linear, bits: int, scale_dtype: torch.dtype | None = None) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        self.bits = bits
        self.bias = dense.bias
        self._hold(*quantise(dense.weight, bits, scale_dtype=scale_dtype))
        # read by transformers, which draws new values for a layer without this mark
        self._is_hf_initialized = not dense.weight.is_meta

    @property
    def quant(self) -> str:
        """Return the name of the quantisation, `int8` or `int4`."""
        return name_bits(self.bits)

    @property
    def held(self) -> list[nn.Parameter]:
        """List the parameters that stand for the weight: codes and scales."""
        return [parameter for name, parameter in self.named_parameters(recurse=False) if name != "bias"]

    def fill(self, weight: Tensor, device: torch.device) -> None:
        """Quantise a dense weight (O, I) into this layer, on `device`; the scales keep their dtype."""
        self._hold(*quantise(weight, self.bits, scale_dtype=self.weight_scale.dtype, device=device))

    def _hold(self, codes: Tensor, scale: Tensor) -> None:
        self.weight = Codes(codes)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)

    def dequantise(self) -> Tensor:
        """Return the weight (O, I) that this layer computes with, in the scales' dtype."""
        return dequantise(self.weight, self.weight_scale, self.bits)

    @property
    def W_q(self) -> Tensor:  # noqa: N802
        """Return the codes; an attribute of this name makes PEFT (for DoRA) call `dequantize` for the weight.

        Source: github.com/huggingface/peft v0.21.2, utils/integrations.py, dequantize_module_weight.
        """
        return self.weight

    def dequantize(self) -> Tensor:
        """Call `dequantise`, under the name that PEFT uses."""
        return self.dequantise()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Turn the weight into `Codes` in every way of setting it: loaders', deep copies'."""
        is_bare = name == "weight" and param is not None and not param.is_floating_point()
        super().register_parameter(name, Codes(param) if is_bare else param)  # type: ignore[arg-type]

    def write(self, out: Tensor, rows: slice, columns: slice) -> None:
        """Write these rows and columns of the weight into `out`, in its dtype; columns begin and end even."""
        held = slice(columns.start * self.bits // 8, columns.stop * self.bits // 8)
        write_weight(out, self.weight[rows, held], self.weight_scale[rows], self.bits)

    def multiply_held(self, rows: Tensor) -> Tensor | None:
        """Multiply by the codes as they are, on a CUDA card."""
        return multiply_codes(rows, self.weight, self.weight_scale, self.bits, bias=self.bias)

    def multiply_held_back(self, gradient: Tensor) -> Tensor | None:
        """Multiply a gradient by the codes as they are, on a CUDA card."""
        return multiply_codes_back(gradient, self.weight, self.weight_scale, self.bits)

    def multiply_few(self, rows: Tensor) -> Tensor | None:
        """Multiply up to `MOST_ROWS` rows by the codes as they are, on a CPU, in bf16."""
        kernel = self._find_kernel(rows)
        return None if kernel is None else kernel.multiply(rows, self.weight_scale, self.bias)

    def _find_kernel(self, rows: Tensor) -> Kernel | None:
        """Return the kernel of these codes, kept until the codes change; None where dequantising is right."""
        is_bf16, is_fp32 = (rows.dtype == dtype for dtype in (torch.bfloat16, torch.float32))
        most = MOST_ROWS[self.bits] if is_bf16 else FP32_ROWS if is_fp32 and self.is_in_a_hurry else 0
        if len(rows) > most or rows.device.type != "cpu":
            return None
        codes = self.weight
        # replaced codes have another id or address, codes changed in place another version
        mark = (id(codes), codes.data_ptr(), 0 if codes.is_inference() else codes._version)
        if self._kernel is None or self._kernel[0] != mark:
            with torch.inference_mode(False):  # a kept inference tensor is of no use outside
                unpacked = codes.detach() if self.bits == 8 else unpack(codes.detach())
                self._kernel = (mark, find_kernel(unpacked, self.bits))
        return self._kernel[1]

    def train(self, mode: bool = True) -> Self:
        """Set the mode as torch does; training drops the kernel, which it never uses."""
        self._kernel = None if mode else self._kernel
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle all but the kernel, which belongs to this object's codes."""
        return {name: value for name, value in self.__dict__.items() if name != "_kernel"}

    def extra_repr(self) -> str:
        """Describe the layer for a printed model."""
        return f"{super().extra_repr()}, bits={self.bits}"


def quantise_linears(model: nn.Module, bits: int, scale_dtype: torch.dtype | None = None) -> None:
    """Replace the linear layers of the model's blocks by quantised ones, in place.

    Raises ConfigError, before any layer is replaced, for 4 bits where a layer has an odd number of inputs.
    """
    for name in name_linears(model):
        dense = model.get_submodule(name)
        assert isinstance(dense, nn.Linear)
        _require_pairs(dense.in_features, bits, name)
    replace_linears(model, lambda dense: QuantizedLinear(dense, bits, scale_dtype))


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], QuantizedLinear]) -> None:
    """Replace each layer that quantisation applies to by `make(layer)`, in place."""
    for name in name_linears(model):
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, make(getattr(model.get_submodule(path), leaf)))


def name_linears(model: nn.Module) -> list[str]:
    """List the names of the layers that quantisation applies to.

    Raises ConfigError if a layer carries an adapter or is no linear layer.
    """
    layers = [(name, part) for name, part in model.named_modules() if is_quantised(name)]
    for name, part in layers:
        if not isinstance(part, nn.Linear):
            if hasattr(part, "base_layer"):  # PEFT's name for the layer under an adapter
                raise ConfigError(
                    f"quantize: {name} has an adapter on it",
                    hint="quantise the model first, then put the adapter on it",
                )
            raise ConfigError(
                f"quantize: {name} is a {type(part).__name__}, not a linear layer",
                hint="open the model as it is published",
            )
    return [name for name, _ in layers]


def quantised_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Return the model's quantised layers by name; none if it is dense."""
    return {name: part for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}


def held_quant(model: nn.Module) -> str | None:
    """Return the quantisation of the model's blocks: `int8`, `int4`, `nf4`, or None for dense ones."""
    return next((layer.quant for layer in quantised_layers(model).values()), None)


def is_held_as(model: nn.Module, quant: str) -> bool:
    """Return True if the model's blocks are quantised to `quant`, False if they are dense.

    Raises ConfigError for blocks with another quantisation.
    """
    held = held_quant(model)
    if held and held != quant:
        raise ConfigError(
            f"quantize: this model is {held} already, not {quant}",
            hint="open the original, unquantised model",
        )
    return held is not None


class Quantizable:
    """Adds `quantize` to a native model class; comes before PreTrainedModel among its bases."""

    config: Any
    scale_dtype: ClassVar[torch.dtype | None] = None
    """Dtype of the scales; None: the weight's. ChatGLM-6B's are always half."""

    def quantize(self, weight_bit_width: int) -> Self:
        """Quantise the blocks to 8 or 4 bits in place; return the model, as the official method does.

        A model that already has this number of bits stays as it is. Raises ConfigError for any other.
        """
        check_bits(weight_bit_width, "quantize: weight_bit_width")
        assert isinstance(self, nn.Module)
        if not is_held_as(self, name_bits(weight_bit_width)):
            quantise_linears(self, weight_bit_width, self.scale_dtype)
            self.config.quantization_bit = weight_bit_width
        return self

    def save_pretrained(self, *args: object, **settings: object) -> None:
        """Save the model as transformers does. Raises ConfigError for nf4: no official folder holds it."""
        assert isinstance(self, nn.Module)
        held = held_quant(self)
        if held not in (None, *BITS):
            raise ConfigError(
                f"save: the model is {held}, and no folder of weights holds that",
                hint=f"save the adapter; quant={held} makes the same codes of the original folder again",
            )
        super().save_pretrained(*args, **settings)  # type: ignore[misc]

    def _init_weights(self, module: nn.Module) -> None:
        """Refuse to draw codes that a checkpoint lacks; called by transformers for every missing tensor."""
        if isinstance(module, QuantizedLinear):
            assert isinstance(self, nn.Module)
            name = next(name for name, part in self.named_modules() if part is module)
            raise CheckpointError(
                f"{self.config.name_or_path or 'checkpoint'}: {name} is quantised and lacks a tensor",
                hint="config.json and weights must be of the same model, and complete",
            )
        super()._init_weights(module)  # type: ignore[misc]

    def _adjust_missing_and_unexpected_keys(self, loading_info: "LoadStateDictInfo") -> None:
        """Refuse codes for a dense model: transformers, the caller, would warn and cast them to weights."""
        odd = next((name for name in loading_info.unexpected_keys if name.endswith(".weight_scale")), None)
        if odd:
            raise CheckpointError(
                f"{self.config.name_or_path or 'checkpoint'}: {odd} belongs to a pre-quantised model, but "
                "config.json makes it dense",
                hint='"quantization_bit" in config.json must be 8 or 4 then',
            )
        super()._adjust_missing_and_unexpected_keys(loading_info)  # type: ignore[misc]
