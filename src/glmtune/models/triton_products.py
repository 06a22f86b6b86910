"""Products with int8 and int4 codes on a CUDA card by Triton kernels, which expand no more than a block.

Where they do not run (no Triton, no compiler for it, a CPU) or do not pay (many rows), a layer's weight is
expanded as a whole and freed again after the product, which is also what they are proven against. Triton
comes with PyTorch's builds for CUDA. No card was at hand: the limits below are reckoned, and
`python -m benchmarks.products --device cuda` measures on both sides of them.
"""

from functools import cache
from importlib.util import find_spec
from subprocess import CalledProcessError

import torch
from torch import Tensor

from glmtune.log import tell

MOST_ROWS = 1024
"""The most rows for which blocks are expanded where they are multiplied, on tensor cores.

Reckoned for a card of 300 operations a byte of its memory: writing and reading the whole weight once takes
0.6 times as long as the product of 1,024 half precision rows, 0.07 times that of 8,192. Expanding a block
takes about as long as its product with the 128 rows that share it, however many there are."""
FEW_ROWS = 64
"""The same for fp32, and on cards before Ampere: Triton 3.9 makes no use of their tensor cores (its PTX for
sm_70 and sm_75 has no `mma`), while few rows wait for memory alone, where codes are a half or a quarter."""
_FIRST_CAPABILITY = (7, 0)
_TENSOR_CORES = (8, 0)


def multiply_codes(
    rows: Tensor, codes: Tensor, scale: Tensor, bits: int, *, bias: Tensor | None = None
) -> Tensor | None:
    """Return the product (N, O) of rows (N, I), plus the bias (O,); None: the weight is to be expanded."""
    if not _is_quick(rows, codes, scale):
        return None
    from glmtune.models.triton_kernels import multiply

    return multiply(rows, codes, scale, bias, bits)


def multiply_codes_back(gradient: Tensor, codes: Tensor, scale: Tensor, bits: int) -> Tensor | None:
    """Return the input's gradient (N, I) of one of the output (N, O); None as in `multiply_codes`."""
    if not _is_quick(gradient, codes, scale):
        return None
    from glmtune.models.triton_kernels import multiply_back

    return multiply_back(gradient, codes, scale, bits)


def _is_quick(given: Tensor, codes: Tensor, scale: Tensor) -> bool:
    """Return True if the kernels run for what is multiplied, and are the quicker way."""
    if given.device.type != "cuda" or not len(given) or torch.float64 in (given.dtype, scale.dtype):
        return False
    if codes.dtype != torch.int8 or not scale.is_floating_point():  # codes of another kind
        return False
    has_cores = torch.cuda.get_device_capability(given.device) >= _TENSOR_CORES
    if given.dtype == torch.bfloat16 and not has_cores:
        return False
    most = MOST_ROWS if has_cores and given.dtype != torch.float32 else FEW_ROWS
    return len(given) <= most and _runs(given.device)


@cache
def _runs(device: torch.device) -> bool:
    """Return True if Triton multiplies on this card; tell the reason, once, if it does not."""
    reason = find_obstacle(device)
    if reason is not None:
        tell(f"int8 and int4 weights are expanded for each product: no Triton kernel ({reason})")
    return reason is None


def find_obstacle(device: torch.device) -> str | None:
    """Return why the kernels do not run on this card, None if they do."""
    if torch.cuda.get_device_capability(device) < _FIRST_CAPABILITY:
        return "for cards from Volta on"
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        from triton.errors import TritonError

        from glmtune.models.triton_kernels import multiply
    except ImportError as err:
        return f"Triton lacks a part: {err}"
    rows = torch.ones(1, 64, dtype=torch.float16, device=device)
    codes, scale = rows.to(torch.int8), rows[0, :1].clone()
    try:  # compiles a program, for which a C compiler is needed too
        product = float(multiply(rows, codes, scale, None, 8))
    except (TritonError, RuntimeError, OSError, CalledProcessError) as err:
        return next(iter(str(err).strip().splitlines()), type(err).__name__)
    return None if product == 64 else f"its sum of 64 ones is {product:g}"
