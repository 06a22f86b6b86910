"""The Triton kernels of products with int8 and int4 codes: a block is expanded where it is multiplied.

Imported only by `triton_products`, which knows where they run; under TRITON_INTERPRET=1 they run on a CPU,
which is how they are proven. A weight is rounded as `quant.write_weight` does it: code * scale in the scales'
type, then in the type of the rows. Sums are in fp32, in an order that depends on the sizes alone: the blocks
are fixed, not tuned on the card, so that a run repeated is the same run.

Shapes: N rows, I inputs of a layer, O its outputs.
"""

# ruff: noqa: E741, N803, N806  the names of sizes are the letters above, those of constants large

from contextlib import AbstractContextManager

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _round(values: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Round fp32 values to `dtype`, to the nearest and half to even; they stay fp32."""
    if dtype == tl.bfloat16:
        # spelled out: the interpreter's cast cuts the last bits off, and Turing cards have none
        bits = values.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        return bits.to(tl.float32, bitcast=True)
    return values.to(dtype).to(tl.float32)


@triton.jit
def _weight(
    codes: tl.tensor, scale: tl.tensor, outputs: tl.tensor, inputs: tl.tensor, O: tl.tensor, I: tl.tensor,
    DTYPE: tl.constexpr, BITS: tl.constexpr, BLOCK_I: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the block of the weight at `outputs` (its rows) and the `BLOCK_I` columns from `inputs`.

    Rounded to the scales' type, then to `DTYPE`. Beyond the weight it is 0.
    """
    PER_BYTE: tl.constexpr = 8 // BITS
    width = I // PER_BYTE
    held = inputs // PER_BYTE + tl.arange(0, BLOCK_I // PER_BYTE)
    places = outputs.to(tl.int64)[:, None] * width + held[None, :]
    block = tl.load(codes + places, mask=(outputs < O)[:, None] & (held < width)[None, :], other=0)
    if BITS == 4:
        # an int8 shift to the right copies the sign, so each half comes out as -8..7; even columns are high
        block = tl.interleave(block >> 4, (block << 4).to(tl.int8) >> 4)
    factor = tl.load(scale + outputs, mask=outputs < O, other=0)
    weight = _round(block.to(tl.float32) * factor.to(tl.float32)[:, None], factor.dtype)
    return weight if factor.dtype == DTYPE else _round(weight, DTYPE)


@triton.jit
def _dot(
    a: tl.tensor, b: tl.tensor, total: tl.tensor, PRECISION: tl.constexpr, IS_WIDE: tl.constexpr
) -> tl.tensor:
    """Return a b + total. `IS_WIDE`: multiplied in fp32, as the interpreter has no products of bf16."""
    if IS_WIDE:
        return tl.dot(a.to(tl.float32), b, total, input_precision="ieee")
    return tl.dot(a, b.to(a.dtype), total, input_precision=PRECISION)


@triton.jit
def _multiply(
    rows: tl.tensor, codes: tl.tensor, scale: tl.tensor, bias: tl.tensor, out: tl.tensor,
    N: tl.tensor, O: tl.tensor, I: tl.tensor,
    HAS_BIAS: tl.constexpr, BITS: tl.constexpr, PRECISION: tl.constexpr, IS_WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
) -> None:  # fmt: skip
    """Write rows (N, I) times the weight's transpose, plus the bias, into `out` (N, O)."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    n_places = n.to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_O), dtype=tl.float32)
    for start in range(0, I, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        x = tl.load(rows + n_places * I + i[None, :], mask=(n < N)[:, None] & (i < I)[None, :], other=0)
        weight = _weight(codes, scale, o, start, O, I, x.dtype, BITS, BLOCK_I)
        total = _dot(x, tl.trans(weight), total, PRECISION, IS_WIDE)
    if HAS_BIAS:
        total += tl.load(bias + o, mask=o < O, other=0).to(tl.float32)[None, :]
    total = _round(total, out.dtype.element_ty)
    tl.store(out + n_places * O + o[None, :], total, mask=(n < N)[:, None] & (o < O)[None, :])


@triton.jit
def _multiply_back(
    gradient: tl.tensor, codes: tl.tensor, scale: tl.tensor, out: tl.tensor,
    N: tl.tensor, O: tl.tensor, I: tl.tensor,
    BITS: tl.constexpr, PRECISION: tl.constexpr, IS_WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
) -> None:  # fmt: skip
    """Write a gradient (N, O) times the weight into `out` (N, I)."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * BLOCK_I
    i = first + tl.arange(0, BLOCK_I)
    n_places = n.to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_I), dtype=tl.float32)
    for start in range(0, O, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        g = tl.load(gradient + n_places * O + o[None, :], mask=(n < N)[:, None] & (o < O)[None, :], other=0)
        weight = _weight(codes, scale, o, first, O, I, g.dtype, BITS, BLOCK_I)
        total = _dot(g, weight, total, PRECISION, IS_WIDE)
    total = _round(total, out.dtype.element_ty)
    tl.store(out + n_places * I + i[None, :], total, mask=(n < N)[:, None] & (i < I)[None, :])


def multiply(rows: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """Return the product (N, O) of rows (N, I) with the weight of these codes, plus the bias (O,)."""
    outputs, inputs = len(codes), codes.shape[1] * 8 // bits
    out = rows.new_empty(len(rows), outputs)
    blocks = _blocks(rows, is_back=False)
    grid = (triton.cdiv(len(rows), blocks["BLOCK_N"]), triton.cdiv(outputs, blocks["BLOCK_O"]))
    with _on_device_of(rows):
        _multiply[grid](
            rows.contiguous(), codes, scale, scale if bias is None else bias, out, len(rows), outputs, inputs,
            HAS_BIAS=bias is not None, BITS=bits, PRECISION=_precision(), IS_WIDE=not rows.is_cuda, **blocks,
        )  # fmt: skip
    return out


def multiply_back(gradient: Tensor, codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the input's gradient (N, I) of an output's gradient (N, O)."""
    outputs, inputs = len(codes), codes.shape[1] * 8 // bits
    out = gradient.new_empty(len(gradient), inputs)
    blocks = _blocks(gradient, is_back=True)
    grid = (triton.cdiv(len(gradient), blocks["BLOCK_N"]), triton.cdiv(inputs, blocks["BLOCK_I"]))
    with _on_device_of(gradient):
        _multiply_back[grid](
            gradient.contiguous(), codes, scale, out, len(gradient), outputs, inputs,
            BITS=bits, PRECISION=_precision(), IS_WIDE=not gradient.is_cuda, **blocks,
        )  # fmt: skip
    return out


def _on_device_of(given: Tensor) -> AbstractContextManager[None]:
    """Return a context with the tensor's card as the current one, on which Triton launches."""
    return torch.cuda.device_of(given)  # type: ignore[no-untyped-call]


def _precision() -> str:
    """Return the word for fp32 products that PyTorch's own setting asks for."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _blocks(given: Tensor, *, is_back: bool) -> dict[str, int]:
    """Return the sizes of the blocks, and warps of 32 threads, for rows or a gradient.

    Two stages of both factors fit into the 64 KiB that a Turing card shares between the threads of a block.
    """
    few = triton.next_power_of_2(max(16, min(len(given), 128)))
    wide = 64 if given.dtype == torch.float32 else 128
    sizes = {"BLOCK_N": min(few, wide), "BLOCK_O": wide, "BLOCK_I": wide, "num_stages": 2}
    sizes["BLOCK_O" if is_back else "BLOCK_I"] = 32  # the dimension that is summed over
    return {**sizes, "num_warps": 8 if few == wide == 128 else 4}
