"""Choose the dtype that weights are held and computed in: requested, as trained, or the fastest that fits.

The choice governs computing only: exported weights keep their stored dtype.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from glmtune.errors import ConfigError
from glmtune.models.quant import is_quantised
from glmtune.models.shards import Stored
from glmtune.processor import free_memory, has_bf16, has_fp16
from glmtune.quants import BITS

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}
MOST_OF_MEMORY = 0.75
"""Share of the free memory that fp32 weights may take where fp32 was not requested: activations need room."""
SLOWER = "4 to 12 times as long"
"""Cost of half precision on a processor without instructions for it. With AVX2 alone, products of many rows
take 4 to 8 times as long as in fp32, LoRA on glm-tiny 7 to 12 times."""

_HAS = {torch.bfloat16: has_bf16, torch.float16: has_fp16}
_NO_BF16 = "this card has no bf16"
_NF4_BITS = 4.25  # a weight, with a scale of 8 bits for each 64 weights, and scales of those


@dataclass(frozen=True, slots=True)
class Choice:
    """The dtype to hold weights in."""

    dtype: torch.dtype
    why: str = ""
    """The reason for this dtype or its cost, for a log line; empty if it is as stored or as requested."""

    @property
    def name(self) -> str:
        """Return the dtype's name as settings spell it, `bf16`."""
        return _short(self.dtype)


def choose_dtype(
    requested: str | torch.dtype,
    stored: Mapping[str, Stored],
    device: torch.device,
    *,
    quant: str | None = None,
    trained: str = "",
) -> Choice:
    """Choose the dtype to hold weights in on a device, and say why.

    requested: a dtype; or "auto", which is the dtype they were `trained` in (torch's name for it, "" for
    unknown) if the device supports it and has the memory, else the choice by `stored` (`_choose`).
    quant: the quantisation of the blocks while loading. Raises ConfigError for a dtype that is unknown, or
    that the card lacks.
    """
    if requested != "auto":
        dtype = DTYPES.get(requested) if isinstance(requested, str) else requested
        if dtype is None or dtype not in DTYPES.values():
            raise ConfigError(
                f"dtype: {requested!r} is not a type for weights",
                hint="dtype=auto, dtype=fp32, dtype=bf16 or dtype=fp16",
            )
        if device.type == "cuda" and not _has_arithmetic(dtype, device):
            raise ConfigError(f"dtype: bf16, but {_NO_BF16}", hint="dtype=fp16 or dtype=auto")
        return Choice(dtype, _cost(dtype, device))
    if trained not in DTYPES:
        return _choose(stored, device, quant)
    before = DTYPES[trained]
    if before == torch.float32:
        obstacle = _too_large(stored, device, quant)
    elif device.type == "cpu":
        obstacle = "CPUs are slow in it" if before == torch.float16 else ""
    else:
        obstacle = "" if _has_arithmetic(before, device) else _NO_BF16
    if obstacle:
        choice = _choose(stored, device, quant)
        return Choice(choice.dtype, _join(f"trained in {_short(before)}", obstacle, choice.why))
    is_as_stored = before == main_dtype(stored)
    cost = _cost(before, device)
    advice = cost and "--dtype fp32, or dtype=fp32 of an evaluation, is quicker and rounds otherwise"
    return Choice(before, _join("" if is_as_stored else "as it was trained", cost, advice))


def _choose(stored: Mapping[str, Stored], device: torch.device, quant: str | None) -> Choice:
    """Choose by the stored dtype.

    A card takes the stored dtype, or fp16 for bf16 if it has none. A CPU takes fp32 for fp32, and for half
    precision bf16 if it has instructions for it; if not, fp32 where that fits into memory, else bf16.
    """
    main = main_dtype(stored)
    if device.type != "cpu":
        return Choice(main) if _has_arithmetic(main, device) else Choice(torch.float16, _NO_BF16)
    if main not in _HAS:
        return Choice(torch.float32)
    cost = _cost(torch.bfloat16, device)
    if not cost:
        return Choice(torch.bfloat16)
    if quant in BITS or any(held.dtype == torch.int8 for held in stored.values()):
        # the kernels of `products`, which save more than bf16 costs
        return Choice(
            torch.bfloat16, _join(cost, "int8 and int4 codes are multiplied as they are in it alone")
        )
    if obstacle := _too_large(stored, device, quant):
        return Choice(torch.bfloat16, _join(cost, obstacle))
    return Choice(torch.float32, _join(_lacking(torch.bfloat16), f"stored in {_short(main)}"))


def _has_arithmetic(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype not in _HAS or _HAS[dtype](device)


def _cost(dtype: torch.dtype, device: torch.device) -> str:
    """Return the cost of a dtype on a device, in words; empty if the device has arithmetic for it."""
    if _has_arithmetic(dtype, device):
        return ""
    return f"{_lacking(dtype)}: {_short(dtype)} takes {SLOWER} as fp32 for many tokens at once"


def _lacking(dtype: torch.dtype) -> str:
    return f"this processor has no {_short(dtype)} arithmetic"


def _too_large(stored: Mapping[str, Stored], device: torch.device, quant: str | None) -> str:
    """Return the lack of memory for fp32, in words; empty if the weights fit, or are stored in fp32."""
    if main_dtype(stored) == torch.float32:
        return ""
    needed, spare = num_bytes(stored, quant), MOST_OF_MEMORY * free_memory(device)
    return f"fp32 takes {_gib(needed)} where {_gib(spare)} are to spare" if needed > spare else ""


def num_bytes(stored: Mapping[str, Stored], quant: str | None) -> float:
    """Count the bytes of a folder's tensors held in fp32, the blocks in nf4 if `quant` is nf4."""
    size = 0.0
    for name, held in stored.items():
        bits: float = 32 if held.dtype.is_floating_point else 8 * held.dtype.itemsize  # codes stay codes
        if quant == "nf4" and held.dtype.is_floating_point and is_quantised(name.removesuffix(".weight")):
            bits = _NF4_BITS
        size += prod(held.shape) * bits / 8
    return size


def main_dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    """Return the dtype of most weights that are not quantised; fp32 if there are none."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in stored.values():
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] += prod(tensor.shape)
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _short(dtype: torch.dtype) -> str:
    return next((name for name, held in DTYPES.items() if held == dtype), str(dtype).removeprefix("torch."))


def _join(*parts: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, parts)))


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
