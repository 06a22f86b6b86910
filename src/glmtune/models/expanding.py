"""The weights that the official INT8 and INT4 codes stand for, written where they are wanted.

Each piece of a weight goes through all its passes while it is in the cache. The values are those of code *
scale, rounded in the scale's dtype (`quant`), then cast.

Shapes: I inputs of a layer, O its outputs, or a part of them.
"""

from functools import cache

import torch
from torch import Tensor

_WEIGHTS_AT_ONCE = 2**18  # in fp32 a MiB: larger leaves the cache, smaller takes longer to call than to do
_WIDE = 1024  # inputs from which it pays to make each row a table of its 256 pairs: nothing else is scaled
_WORDS = {2: torch.int32, 4: torch.int64, 8: torch.complex128}
"""A dtype of twice as many bytes."""


def write_weight(out: Tensor, codes: Tensor, scale: Tensor, bits: int) -> None:
    """Write the weight that codes and scales stand for into `out` (O, I), contiguous, in its dtype."""
    outputs, inputs = out.shape
    has_tables = bits == 4 and inputs >= _WIDE
    wide = torch.promote_types(scale.dtype, torch.float32)
    step = max(1, _WEIGHTS_AT_ONCE // inputs) if out.device.type == "cpu" else max(1, outputs)
    pieces = (torch.split(tensor, step) for tensor in (out, codes, scale))
    for part, part_codes, part_scale in zip(*pieces, strict=True):
        if has_tables:
            weights = torch.empty(len(part), 16, dtype=out.dtype, device=out.device)
            _scale(weights, _nibbles(out.device).expand(len(part), 16), part_scale)
            _look_up(part, part_codes, _pair(weights))
        elif bits == 4:
            numbers = torch.empty_like(part, dtype=wide)
            _look_up(numbers, part_codes, _pairs_of_codes(wide, out.device))
            _scale(part, numbers, part_scale)
        else:
            _scale(part, part_codes, part_scale)


def _scale(out: Tensor, codes: Tensor, scale: Tensor) -> None:
    """Write codes (O, I) times scales (O,), rounded in the scales' dtype, into `out`.

    Codes that are floats already are overwritten.
    """
    # the product of a code and a half number is exact in fp32, so that rounding it to half is half's product
    wide = torch.promote_types(scale.dtype, torch.float32)
    numbers = codes.to(wide)
    weights = torch.mul(numbers, scale.to(wide)[:, None], out=out if out.dtype == wide else numbers)
    if scale.dtype not in (wide, out.dtype):
        # through fp32: casting fp16 to bf16 at once takes five times as long
        weights.copy_(weights.to(scale.dtype))
    if weights is not out:
        out.copy_(weights)


def _look_up(out: Tensor, packed: Tensor, pairs: Tensor) -> None:
    """Write for each packed byte (O, I/2) its pair, of one table (1, 256) or one for each row, into `out`.

    A pair is one word of memory, so this is a single pass, where shifts and interleaving take six.
    """
    index = packed.view(torch.uint8).to(torch.int32)
    if len(pairs) > 1:
        index += torch.arange(0, pairs.numel(), 256, dtype=torch.int32, device=out.device)[:, None]
    torch.index_select(pairs.view(-1), 0, index.view(-1), out=out.view(-1).view(pairs.dtype))


def _pair(weights: Tensor) -> Tensor:
    """Return of the weights of each nibble (O, 16) the pairs of each byte (O, 256), a pair as one word."""
    high, low = weights[:, :, None].expand(-1, 16, 16), weights[:, None, :].expand(-1, 16, 16)
    return torch.stack((high, low), dim=-1).view(len(weights), 512).view(_WORDS[weights.dtype.itemsize])


@cache
def _nibbles(device: torch.device) -> Tensor:
    """Return the codes that the nibbles 0 to 15 stand for, (1, 16)."""
    with torch.inference_mode(False):
        return torch.tensor([[*range(8), *range(-8, 0)]], dtype=torch.int8, device=device)


@cache
def _pairs_of_codes(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the table (1, 256) of the codes themselves, in `dtype`."""
    with torch.inference_mode(False):
        return _pair(_nibbles(device).to(dtype))
