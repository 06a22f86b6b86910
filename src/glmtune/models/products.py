"""Products with the official int8 and int4 codes on a CPU that expand nothing: for few rows, in bf16.

As exact as expanding the codes (both are 0.2 % off the exact product, by the rounding of the output), and for
one row 11 and 40 times as fast. The cost grows with the rows, and that of expanding hardly does, so beyond
`MOST_ROWS` it is the slower way. Figures: benchmarks/products.py, 2 cores with AVX-512.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_ROWS = {8: 16, 4: 64}
"""Rows up to which codes are multiplied as they are, by their bits."""

_BLOCKS = (256, 128, 64, 32)  # inputs with one scale in common, as the int4 kernel wants it
_OFFSET = 8  # its codes are 0 to 15 and stand for -8 to 7


@dataclass(frozen=True, slots=True)
class Kernel:
    """A layer's codes in the order that torch's kernel reads them."""

    codes: Tensor
    ones: Tensor
    """Scales of 1: bf16 holds the codes exactly, as whole numbers, but not their scales."""
    block: int | None
    """Inputs that have a scale in common; None for int8."""

    def multiply(self, rows: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """bf16 (N, I) to (N, O); scale and bias: (O,)."""
        if self.block is None:
            product = torch._weight_int8pack_mm(rows, self.codes, self.ones)
        else:
            product = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.codes, self.block, self.ones)
        scaled = product.float().mul_(scale)
        return (scaled if bias is None else scaled.add_(bias)).to(rows.dtype)


def find_kernel(codes: Tensor, bits: int) -> Kernel | None:
    """How to multiply int8 codes (O, I) of so many bits, -8 to 7 for 4; None where torch has no way.

    The codes of int8 are held as they are, those of int4 once more in the kernel's order.
    """
    outputs, inputs = codes.shape
    if bits == 8:
        return Kernel(codes, torch.ones(outputs, dtype=torch.bfloat16), None)
    block = next((size for size in _BLOCKS if inputs % size == 0), None)
    if block is None:
        return None
    ordered = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int() + _OFFSET, 1)
    one_and_zero = torch.tensor([1.0, 0.0], dtype=torch.bfloat16)
    return Kernel(ordered, one_and_zero.expand(inputs // block, outputs, 2).contiguous(), block)
