"""Choose the dtype that weights are held in, and the one that products are computed in.

Weights are held as requested, as they were trained, or as they are stored, fp16 in bf16 where products are
computed in that; products are computed in what the device is good at, or was trained with. Exported weights
keep their stored dtype, whatever is chosen here.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch

from glmtune.errors import ConfigError
from glmtune.models.quant import is_quantised
from glmtune.models.shards import Stored
from glmtune.processor import free_memory, has_bf16, has_fp16

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
_LOADED_BITS = {"int8": 8, "int4": 4, "nf4": 4.25}
"""Bits of a weight that is quantised while it is read: of nf4 with a scale of 8 bits for each 64 weights, and
scales of those; of int8 and int4, whose scales are one a row, the codes alone."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The dtype to hold weights in, and the dtype to compute in."""

    dtype: torch.dtype
    computing: torch.dtype
    why: str = ""
    """The reason for these dtypes or their cost, for a log line; empty if they are as stored or requested."""
    is_hurried: bool = field(default=False, compare=False)
    """True if decoding may round to the held dtype for speed: the device would choose the computing dtype by
    itself, whoever asked for it, so that a run's samples and the chat with its adapter are rounded alike."""
    unrounded: torch.dtype | None = field(default=None, compare=False)
    """The stored dtype where the held one rounds it; None where it does not, or was requested or trained."""

    @property
    def name(self) -> str:
        """Return the held dtype's name as settings spell it, `bf16`."""
        return _short(self.dtype)

    @property
    def computing_name(self) -> str:
        """Return the computing dtype's name as settings spell it."""
        return _short(self.computing)


def choose_dtype(
    requested: str | torch.dtype | Choice,
    stored: Mapping[str, Stored],
    device: torch.device,
    *,
    trained: str = "",
    computed: str = "",
    quant: str | None = None,
) -> Choice:
    """Choose the dtypes to hold weights in and to compute in on a device, and say why.

    requested: a dtype to hold them in; a choice made before, which is returned; or "auto", which is the dtype
    they were `trained` in (torch's name for it, "" for unknown) if the device supports it and has the memory,
    else the stored one. What was trained computes in the dtype that it `computed` in on a CPU,
    anything else by `_compute_held`. quant: the quantisation of the blocks while loading. Raises ConfigError
    for a dtype that is unknown, or that the card lacks.
    """
    if isinstance(requested, Choice):
        return requested
    if requested != "auto":
        dtype = DTYPES.get(requested) if isinstance(requested, str) else requested
        if dtype is None or dtype not in DTYPES.values():
            raise ConfigError(
                f"dtype: {requested!r} is not a type for weights",
                hint="dtype=auto, dtype=fp32, dtype=bf16 or dtype=fp16",
            )
        if device.type == "cuda" and not _has_arithmetic(dtype, device):
            raise ConfigError(f"dtype: bf16, but {_NO_BF16}", hint="dtype=fp16 or dtype=auto")
        return _compute_held(dtype, device)
    untrained = _choose(stored, device)
    if trained not in DTYPES:
        return untrained
    before = _as_trained(DTYPES[trained], DTYPES.get(computed, DTYPES[trained]), device)
    main = main_dtype(stored)
    if before.dtype == torch.float32 != main:
        needed, spare = num_bytes(stored, quant), MOST_OF_MEMORY * free_memory(device)
        if needed > spare:
            # as they are stored they are the same numbers, so what is computed stays the same too
            obstacle = f"fp32 takes {_gib(needed)} where {_gib(spare)} are to spare"
            return replace(before, dtype=main, why=_join("trained in fp32", obstacle))
    if device.type != "cpu":
        obstacle = "" if _has_arithmetic(before.computing, device) else _NO_BF16
    else:  # bf16 is slow on most, but what was trained in it is computed in it
        obstacle = "CPUs are slow in it" if before.computing == torch.float16 else ""
    if obstacle:
        trained_in = before.why or f"trained in {before.computing_name}"
        return replace(untrained, why=_join(trained_in, obstacle, untrained.why))
    is_usual = (before.dtype, before.computing) == (untrained.dtype, untrained.computing)
    changed = "" if before.why or is_usual else "as it was trained"
    cost = _cost(before.computing, device)
    advice = cost and (
        f"--dtype {before.name}, or dtype={before.name} of an evaluation, computes in fp32 here: quicker, "
        "and rounded otherwise"
    )
    return replace(before, why=_join(before.why, changed, cost, advice))


def _as_trained(dtype: torch.dtype, computed: torch.dtype, device: torch.device) -> Choice:
    """Return the choice for weights that were held in `dtype` and computed in another, or the same.

    A card computes in what it holds, for with another type it casts a layer whole for each product.
    """
    usual = _compute_held(dtype, device)
    if device.type != "cpu":
        why = "" if computed == dtype else f"trained in {_short(computed)}; a card computes as it holds"
        return replace(usual, why=why)
    return Choice(dtype, computed, is_hurried=usual.is_hurried and usual.computing == computed)


def _choose(stored: Mapping[str, Stored], device: torch.device) -> Choice:
    """Choose the stored dtype, but fp16 for bf16 on a card that has none, bf16 for fp16 computed in bf16."""
    main = main_dtype(stored)
    if device.type != "cpu":
        if _has_arithmetic(main, device):
            return Choice(main, main)
        return Choice(torch.float16, torch.float16, _NO_BF16, unrounded=main)
    choice = _compute_held(main if main in _HAS else torch.float32, device)
    if (main, choice.computing) == (torch.float16, torch.bfloat16):
        # every product would round these weights to bf16 anew: rounded while read, they give the same ones
        return replace(choice, dtype=torch.bfloat16, unrounded=main)
    return choice


def _compute_held(dtype: torch.dtype, device: torch.device) -> Choice:
    """Return the choice for weights held in `dtype`: a card computes in it, a CPU in what it is good at.

    That is fp32, and bf16 for half precision where the processor has instructions for it.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return Choice(dtype, dtype)
    if has_bf16(device):
        return Choice(dtype, torch.bfloat16, is_hurried=True)
    return Choice(dtype, torch.float32, _lacking(torch.bfloat16), is_hurried=True)


def choose_precision(wanted: str, base: Choice, device: torch.device) -> str:
    """Return the precision of forward and backward passes: fp32, bf16 or fp16.

    `wanted` is `train.precision`; its `auto` takes the type that the base computes in. Raises `ConfigError`
    for a precision that the device does not have.
    """
    name = base.computing_name if wanted == "auto" else wanted
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision: fp16 needs a GPU", hint="train.precision=auto")
    if name == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise ConfigError(
            "train.precision: bf16, but this card has no bf16",
            hint="train.precision=fp16 or train.precision=auto",
        )
    return name


def with_precision(choice: Choice, precision: str, device: torch.device) -> Choice:
    """Return the choice for a base that is trained in a precision: fp32, bf16 or fp16.

    A base held in fp32 stays as it is: there autocast lowers the precision of the products alone. One that
    was rounded for the products alone is held as it is stored for others.
    """
    computing = DTYPES[precision]
    if computing == choice.computing or choice.dtype == torch.float32:
        return choice
    return Choice(choice.unrounded or choice.dtype, computing, _cost(computing, device))


def _has_arithmetic(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype not in _HAS or _HAS[dtype](device)


def _cost(dtype: torch.dtype, device: torch.device) -> str:
    """Return the cost of a dtype on a device, in words; empty if the device has arithmetic for it."""
    if _has_arithmetic(dtype, device):
        return ""
    return f"{_lacking(dtype)}: {_short(dtype)} takes {SLOWER} as fp32 for many tokens at once"


def _lacking(dtype: torch.dtype) -> str:
    return f"this processor has no {_short(dtype)} arithmetic"


def num_bytes(stored: Mapping[str, Stored], quant: str | None, dtype: torch.dtype = torch.float32) -> float:
    """Count the bytes of a folder's tensors held in a dtype, the blocks as `quant`'s codes."""
    size = 0.0
    for name, held in stored.items():
        is_code = not held.dtype.is_floating_point  # codes stay codes
        bits: float = 8 * (held.dtype if is_code else dtype).itemsize
        if held.dtype.is_floating_point and is_quantised(name.removesuffix(".weight")):
            bits = _LOADED_BITS.get(quant or "", bits)
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
