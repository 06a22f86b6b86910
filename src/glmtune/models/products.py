"""Matrix products with int8 and int4 codes as they are, by torch's CPU kernels: for few rows, in bf16.

As exact as dequantising the weight first (both are 0.2 % off the exact product, by the rounding of the
output), and for one row 11 (int8) and 40 (int4) times as fast. The cost grows with the rows, that of
dequantising hardly does: beyond `MOST_ROWS` dequantising is faster. Figures: benchmarks/products.py, 2 cores
with AVX-512.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_ROWS = {8: 16, 4: 64}
"""The most rows for which codes are multiplied as they are, by bits of a code."""

FP32_ROWS = 16
"""The same for rows of fp32, which are rounded to bf16: in steps of decoding only, and so many that a batch's
are quick on a processor without bf16 instructions (one core of AVX2, 4096 x 4608: 17 ms, expanded 32 to 40).
"""

_BLOCKS = (256, 128, 64, 32)  # the numbers of inputs that may share a scale in the int4 kernel
_OUTPUTS = 16  # the int4 kernel wants a multiple of it
_OFFSET = 8  # the int4 kernel's codes are 0 to 15 and stand for -8 to 7


@dataclass(frozen=True, slots=True)
class Kernel:
    """A layer's codes in the layout of torch's kernel."""

    codes: Tensor
    ones: Tensor
    """Scales of 1: bf16 holds the codes exactly, as whole numbers, but not their scales."""
    block: int | None
    """Number of inputs that share a scale; None for int8."""

    def multiply(self, rows: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply rows (N, I), in bf16, to (N, O) of their dtype; scale and bias: (O,)."""
        given = rows.to(torch.bfloat16)
        if self.block is None:
            product = torch._weight_int8pack_mm(given, self.codes, self.ones)
        else:
            product = torch.ops.aten._weight_int4pack_mm_for_cpu(given, self.codes, self.block, self.ones)
        scaled = product.float().mul_(scale)  # fp32, so that scaling rounds nothing
        return (scaled if bias is None else scaled.add_(bias)).to(rows.dtype)


def find_kernel(codes: Tensor, bits: int) -> Kernel | None:
    """Return the kernel for unpacked codes, int8 (O, I), of 8 or 4 bits; None if torch has none for O and I.

    The kernel shares the memory of 8-bit codes; of 4-bit codes (-8 to 7) it holds a copy in its own layout.
    """
    outputs, inputs = codes.shape
    if bits == 8:
        return Kernel(codes, torch.ones(outputs, dtype=torch.bfloat16), None)
    if (block := _block(outputs, inputs)) is None:
        return None
    # in place: these are the largest tensors of decoding
    ordered = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int().add_(_OFFSET), 1)
    one_and_zero = torch.tensor([1.0, 0.0], dtype=torch.bfloat16)
    return Kernel(ordered, one_and_zero.expand(inputs // block, outputs, 2).contiguous(), block)


def decoding_bytes(layers: Iterable[tuple[int, int, int]]) -> int:
    """Return the bytes that the kernels of layers take beside their codes: of 4 bits the codes once more.

    layers: the outputs, inputs and bits of each. A kernel is made of codes in int8 and then in int32.
    """
    kernels, largest = 0, 0
    for outputs, inputs, bits in layers:
        if bits == 4 and (block := _block(outputs, inputs)):
            kernels += outputs * (inputs // 2 + 4 * (inputs // block))
            largest = max(largest, 5 * outputs * inputs)
    return kernels + largest


def _block(outputs: int, inputs: int) -> int | None:
    """Return the most inputs that may share a scale in the int4 kernel; None if it cannot multiply these."""
    return None if outputs % _OUTPUTS else next((size for size in _BLOCKS if inputs % size == 0), None)
