"""QLoRA's base: the linear layers of the blocks in NF4 with double quantisation, through bitsandbytes.

A weight is one of 16 values, spaced as a normal distribution's quantiles, times the largest magnitude of its
block of 64 weights; those magnitudes are quantised to 8 bits, in blocks of 256: 4.13 bits a weight in all.
Codes, magnitudes and the product equal those of bitsandbytes to the last bit.

The layer replaces bitsandbytes' `Linear4bit`, which on a CPU with bf16 instructions repacks its weight for
inference at the first forward pass in evaluation mode: no gradient passes it from then on (0.50). `Nf4Linear`
holds everything in parameters, so state dicts, copies and moves are torch's own; and PEFT takes it for a
linear layer like any other, so every method treats nf4 as it does int8 and int4.

Source: QLoRA, https://arxiv.org/abs/2305.14314, sections 2 and 3; bitsandbytes, functional.quantize_4bit.
Shapes: T tokens, I inputs of a layer, O its outputs; N = OI / 64 blocks.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.extras import require
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import (
    Quantizable,
    QuantizedLinear,
    is_held_as,
    name_linears,
    quantise_linears,
    replace_linears,
)
from glmtune.quants import BITS

BLOCK = 64
"""Number of weights that share a magnitude."""

_DECODED = (torch.float32, torch.bfloat16, torch.float16)  # the types that bitsandbytes decodes to
_DECODED_AT_ONCE = 2**18  # numbers, on a CPU: in fp32 a MiB
_MAGNITUDES = 256  # magnitudes that share a scale; the only number that bitsandbytes' product takes
_ROWS_AT_ONCE = 256  # bounds the memory beyond the result while quantising


def _load() -> Any:
    return require("bitsandbytes", extra="bitsandbytes")


class Nf4Linear(QuantizedLinear):
    """A linear layer held as NF4 codes (`weight`, uint8, two in a byte); its bias stays as it is.

    `weight_scale`, uint8 (N,), are the codes of the magnitudes; `scale_scale` (N / 256, rounded up) and
    `scale_offset` () decode them: float32 bits held as int32, so that no cast of the model rounds them.
    Made from a dense layer; a dense layer on the meta device makes an empty one, for `fill`.
    """

    scale_scale: nn.Parameter
    scale_offset: nn.Parameter

    def __init__(self, dense: nn.Linear) -> None:
        _load()
        nn.Linear.__init__(self, dense.in_features, dense.out_features, bias=False, device="meta")
        self.bits = 4
        self.bias = dense.bias
        self.dtype = dense.weight.dtype
        self.fill(dense.weight, dense.weight.device)
        # read by transformers, which draws new values for a layer without this mark
        self._is_hf_initialized = not dense.weight.is_meta

    @property
    def quant(self) -> str:
        """Return the name of the quantisation, `nf4`."""
        return "nf4"

    @torch.no_grad()
    def fill(self, weight: Tensor, device: torch.device) -> None:
        """Quantise a dense weight (O, I) into this layer, on `device`."""
        quantize_4bit = _load().functional.quantize_4bit
        outputs, inputs = weight.shape
        codes = torch.empty(outputs, inputs // 2, dtype=torch.uint8, device=device)
        # the type by name: transformers builds its models while another is the default
        magnitudes = torch.empty(outputs, inputs // BLOCK, dtype=torch.float32, device=device)
        for start in range(0, 0 if weight.is_meta else outputs, _ROWS_AT_ONCE):  # an outline has no numbers
            rows = slice(start, start + _ROWS_AT_ONCE)
            part = weight[rows].to(device).float()
            packed, state = quantize_4bit(part, blocksize=BLOCK, quant_type="nf4")
            codes[rows], magnitudes[rows] = packed.view(len(part), -1), state.absmax.view(len(part), -1)
        self.weight = nn.Parameter(codes, requires_grad=False)
        scales = _quantise_magnitudes(magnitudes.flatten())
        for name, tensor in zip(("weight_scale", "scale_scale", "scale_offset"), scales, strict=True):
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))

    def dequantise(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight (O, I) in `dtype`, by default the dtype of the original dense weight."""
        weight: Tensor = _load().functional.dequantize_4bit(self.weight, self._state(dtype or self.dtype))
        return weight

    def whole(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (O, I) in `dtype`."""
        return self.dequantise(dtype) if dtype in _DECODED else self.dequantise(torch.float32).to(dtype)

    def write(self, out: Tensor, rows: slice, columns: slice) -> None:
        """Write these rows and columns of the weight into `out`; columns in whole blocks of 64."""
        functional = _load().functional
        # a CPU's kernel makes a tensor of its own, which would be a second block: pieces stay in the cache
        step = max(1, _DECODED_AT_ONCE // out.shape[1]) if out.device.type == "cpu" else len(out)
        for start, part in zip(range(rows.start, rows.stop, step), torch.split(out, step), strict=True):
            lines = slice(start, start + len(part))
            state = functional.QuantState(
                self._magnitudes(lines, slice(columns.start // BLOCK, columns.stop // BLOCK)),
                shape=part.shape,
                blocksize=BLOCK,
                quant_type="nf4",
                dtype=out.dtype if out.dtype in _DECODED else torch.float32,
            )
            codes = self.weight[lines, columns.start // 2 : columns.stop // 2]
            # as one column: a single row of codes would be taken for a transposed weight
            part.copy_(functional.dequantize_4bit(codes.reshape(-1, 1), state))

    def multiply_held(self, rows: Tensor) -> Tensor | None:
        """Return None: the kernels of int8 and int4 cannot read these codes."""
        return None

    def multiply_held_back(self, gradient: Tensor) -> Tensor | None:
        """Return None, as `multiply_held`."""
        return None

    def _magnitudes(self, rows: slice, blocks: slice) -> Tensor:
        """Return the magnitudes of a part of the weight, row by row, as bitsandbytes decodes them."""
        per_row = self.in_features // BLOCK
        of_row, of_block = (
            torch.arange(part.start, part.stop, device=self.weight.device) for part in (rows, blocks)
        )
        index = (of_row[:, None] * per_row + of_block).view(-1)
        values = _code_of_magnitudes(self.weight.device)[self.weight_scale[index].long()]
        scales = self.scale_scale.view(torch.float32)[index // _MAGNITUDES]
        return values.mul_(scales).add_(self.scale_offset.view(torch.float32))

    def multiply_few(self, rows: Tensor) -> Tensor | None:
        """Multiply a single row on a GPU, by bitsandbytes' kernel for it."""
        if len(rows) != 1 or rows.device.type == "cpu" or rows.dtype not in _DECODED:
            return None
        bias = None if self.bias is None else self.bias.to(rows.dtype)
        state = self._state(rows.dtype)
        product: Tensor = _load().matmul_4bit(rows, self.weight, bias=bias, quant_state=state)
        return product

    def _state(self, dtype: torch.dtype) -> Any:
        """Build bitsandbytes' description of the codes, decoded to weights of `dtype`."""
        functional = _load().functional
        nested = functional.QuantState(
            self.scale_scale.view(torch.float32),
            code=_code_of_magnitudes(self.weight.device),
            blocksize=_MAGNITUDES,
            dtype=torch.float32,
        )
        return functional.QuantState(
            self.weight_scale,
            shape=torch.Size((self.out_features, self.in_features)),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=self.scale_offset.view(torch.float32),
            state2=nested,
        )

    def extra_repr(self) -> str:
        """Describe the layer for a printed model."""
        return f"{nn.Linear.extra_repr(self)}, quant=nf4"


def _quantise_magnitudes(magnitudes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales and offset of magnitudes (N,), the last two as the bits of their float32."""
    offset = magnitudes.mean()  # subtracted first: magnitudes are positive, the 8-bit code is symmetric
    if magnitudes.is_meta:
        codes, scale = magnitudes.to(torch.uint8), magnitudes[::_MAGNITUDES].clone()
    else:
        codes, state = _load().functional.quantize_blockwise(
            magnitudes - offset, code=_code_of_magnitudes(magnitudes.device), blocksize=_MAGNITUDES
        )
        scale = state.absmax
    return codes, scale.view(torch.int32), offset.view(torch.int32)


@cache
def _code_of_magnitudes(device: torch.device) -> Tensor:
    """Return the 256 values that an 8-bit code of a magnitude stands for."""
    values: Tensor = _load().functional.create_dynamic_map().to(device)
    return values


def quantise_to_nf4(model: nn.Module) -> None:
    """Replace the linear layers of the model's blocks by NF4 ones, in place.

    Raises ConfigError, before any layer is replaced, unless the rows of every layer are whole blocks.
    """
    _load()
    if is_held_as(model, "nf4"):
        return
    for name in name_linears(model):
        dense = model.get_submodule(name)
        assert isinstance(dense, nn.Linear)
        if dense.in_features % BLOCK:
            raise ConfigError(
                f"quant: nf4 needs rows of a multiple of {BLOCK} weights, "
                f"those of {name} have {dense.in_features}",
                hint="quant=int4 or quant=int8",
            )
    replace_linears(model, Nf4Linear)


def quantise_as(model: CausalLM, quant: str) -> None:
    """Quantise the blocks of a model of ours or of transformers' in place to `quant`: int8, int4 or nf4."""
    if quant not in BITS:
        quantise_to_nf4(model)
    elif isinstance(model, Quantizable):
        model.quantize(BITS[quant])
    else:
        quantise_linears(model, BITS[quant])
