"""In which type weights are held, and so computed with: as asked, as they were trained, or what is quick.

It governs computing only: what is exported keeps its stored type.
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
"""Share of the free memory that weights may take in fp32 where nobody asked for it: what is computed needs
room too."""
SLOWER = "4 to 12 times as long"
"""What half precision takes that the processor has no instructions for: on AVX2 alone, products of many rows
4 to 8 times, LoRA on glm-tiny 7 to 12 times."""

_HAS = {torch.bfloat16: has_bf16, torch.float16: has_fp16}
_NO_BF16 = "this card has no bf16"
_LOADED_BITS = {"nf4": 4.25}  # with a scale of 8 bits for each 64 weights, and scales of those


@dataclass(frozen=True, slots=True)
class Choice:
    """A type for weights."""

    dtype: torch.dtype
    why: str = ""
    """For a line to the user: why this one, or what it costs; empty where it is as stored or as asked."""

    @property
    def name(self) -> str:
        """As settings have it."""
        return _short(self.dtype)


def choose_dtype(
    requested: str | torch.dtype,
    stored: Mapping[str, Stored],
    device: torch.device,
    *,
    quant: str | None = None,
    trained: str = "",
) -> Choice:
    """The type to hold weights in on a device, and why. Raises `ConfigError` for what cannot be.

    "auto" is the type that they were `trained` in, by torch's name, where that is known and the device can
    and has the memory. Else it is the stored one on a card, but fp16 for bf16 where a card has none. On a
    CPU it is fp32 for fp32, and for half precision bf16 if the processor has arithmetic for it; if not,
    fp32 where that fits into memory, and bf16 where it does not and for int8 and int4, whose codes are
    multiplied as they are in bf16 alone. `quant`: how the blocks are quantised while loading.
    """
    if requested != "auto":
        dtype = _require(requested, device)
        return Choice(dtype, _cost(dtype, device))
    if trained not in DTYPES:
        return _choose(stored, device, quant)
    before = DTYPES[trained]
    if obstacle := _find_obstacle(before, stored, device, quant):
        choice = _choose(stored, device, quant)
        return Choice(choice.dtype, _join(f"trained in {_short(before)}", obstacle, choice.why))
    is_as_stored = before == main_dtype(stored)
    cost = _cost(before, device)
    way = cost and "--dtype fp32, or dtype=fp32 of an evaluation, is quicker and rounds otherwise"
    return Choice(before, _join("" if is_as_stored else "as it was trained", cost, way))


def _require(requested: str | torch.dtype, device: torch.device) -> torch.dtype:
    dtype = DTYPES.get(requested) if isinstance(requested, str) else requested
    if dtype is None or dtype not in DTYPES.values():
        raise ConfigError(
            f"dtype: {requested!r} is not a type for weights",
            hint="dtype=auto, dtype=fp32, dtype=bf16 or dtype=fp16",
        )
    if device.type == "cuda" and not _has_arithmetic(dtype, device):
        raise ConfigError(f"dtype: bf16, but {_NO_BF16}", hint="dtype=fp16 or dtype=auto")
    return dtype


def _find_obstacle(
    dtype: torch.dtype, stored: Mapping[str, Stored], device: torch.device, quant: str | None
) -> str:
    """Why weights that were trained in a type are not opened in it; empty where they are."""
    if dtype == torch.float32:
        return _too_large(stored, device, quant)
    if device.type == "cpu":
        return "CPUs are slow in it" if dtype == torch.float16 else ""
    return "" if _has_arithmetic(dtype, device) else _NO_BF16


def _choose(stored: Mapping[str, Stored], device: torch.device, quant: str | None) -> Choice:
    main = main_dtype(stored)
    if device.type != "cpu":
        return Choice(main) if _has_arithmetic(main, device) else Choice(torch.float16, _NO_BF16)
    if main not in _HAS:
        return Choice(torch.float32)
    cost = _cost(torch.bfloat16, device)
    if not cost:
        return Choice(torch.bfloat16)
    if quant in BITS or any(held.dtype == torch.int8 for held in stored.values()):
        return Choice(
            torch.bfloat16, _join(cost, "int8 and int4 codes are multiplied as they are in it alone")
        )
    if obstacle := _too_large(stored, device, quant):
        return Choice(torch.bfloat16, _join(cost, obstacle))
    return Choice(torch.float32, _join(_lacking(torch.bfloat16), f"stored in {_short(main)}"))


def _has_arithmetic(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype not in _HAS or _HAS[dtype](device)


def _cost(dtype: torch.dtype, device: torch.device) -> str:
    """What a type costs on a device; empty where it has arithmetic for it."""
    if _has_arithmetic(dtype, device):
        return ""
    return f"{_lacking(dtype)}: {_short(dtype)} takes {SLOWER} as fp32 for many tokens at once"


def _lacking(dtype: torch.dtype) -> str:
    return f"this processor has no {_short(dtype)} arithmetic"


def _too_large(stored: Mapping[str, Stored], device: torch.device, quant: str | None) -> str:
    """By how much weights do not fit in fp32; empty where they do, or are stored so."""
    if main_dtype(stored) == torch.float32:
        return ""
    needed, spare = num_bytes(stored, quant), MOST_OF_MEMORY * free_memory(device)
    return f"fp32 takes {_gib(needed)} where {_gib(spare)} are to spare" if needed > spare else ""


def num_bytes(stored: Mapping[str, Stored], quant: str | None) -> float:
    """What a folder's tensors take in fp32, the blocks in nf4 if they are quantised so while loading."""
    return sum(prod(held.shape) * _bits(name, held, quant) / 8 for name, held in stored.items())


def _bits(name: str, held: Stored, quant: str | None) -> float:
    if not held.dtype.is_floating_point:
        return 8 * held.dtype.itemsize
    return _LOADED_BITS.get(quant or "", 32) if is_quantised(name.removesuffix(".weight")) else 32


def main_dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    """The type of most weights that are not quantised."""
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
