"""Measurement of a run's highest memory, and the errors of allocations that fail."""

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from glmtune.models.products import decoding_bytes
from glmtune.models.quant import quantised_layers
from glmtune.quants import BITS
from glmtune.recipe import TrainedPart
from glmtune.training.sharding import own_bytes

GIB = 2**30
FAILED = (
    "can't allocate memory",  # torch's allocator, on a CPU
    "not enough memory",  # the same on Windows
    "could not create a primitive",  # oneDNN
    "could not create a memory",
    "out of memory",
    "Cannot allocate memory",
    "failed to map segment",  # a library that is imported late
    "can't start new thread",
)
"""Words of the errors of allocations that fail; torch and oneDNN raise plain `RuntimeError` on a CPU."""
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_SIZES = (b"VmHWM:", b"VmRSS:", b"RssAnon:")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an allocation has failed, of torch, of a library below it or of Python."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, (RuntimeError, ImportError)) and any(words in str(error) for words in FAILED)


def weights_by_part(model: nn.Module, kept: TrainedPart) -> dict[str, int]:
    """Return the bytes of a model's tensors: its weights, by kind if quantised, and what a method adds."""
    layers = quantised_layers(model).values()
    kinds = {id(p): "scales" for layer in layers for name, p in layer.named_parameters() if name != "bias"}
    kinds |= {id(layer.weight): "codes" for layer in layers}
    rest = "not quantised" if layers else "weights"
    added = {TrainedPart.LAYERS: "adapter", TrainedPart.PREFIX: "prefix"}.get(kept)
    sizes = dict.fromkeys((*(("codes", "scales") if layers else ()), rest, *filter(None, [added])), 0)
    for tensor in (*model.parameters(), *model.buffers()):
        part = added if added and tensor.requires_grad else kinds.get(id(tensor), rest)
        sizes[part] += own_bytes(tensor)
    return sizes


def answering_bytes(model: nn.Module, device: torch.device) -> int:
    """Return the bytes that a model takes beside itself to decode: of int4 on a CPU, its codes once more."""
    if device.type != "cpu":
        return 0
    layers = [layer for layer in quantised_layers(model).values() if layer.quant in BITS]
    return decoding_bytes((layer.out_features, layer.in_features, layer.bits) for layer in layers)


@dataclass(frozen=True, slots=True)
class Held:
    """The most bytes that a process held over some time."""

    whole: int
    """Resident memory, pages of files included; on a GPU what torch's allocator has reserved there."""
    own: int
    """Of these, what is no page of a file; on a GPU what tensors took."""

    @classmethod
    def most(cls, several: Iterable["Held"]) -> "Held":
        """Return the highest of both figures."""
        wholes, owns = zip(*((held.whole, held.own) for held in several), strict=True)
        return cls(max(wholes), max(owns))

    def above(self, before: "Held") -> "Held":
        """Return what is more than `before`."""
        return Held(max(0, self.whole - before.whole), max(0, self.own - before.own))


class MemoryMeter:
    """Reads the most memory of this process in each phase of its work, on a CPU or on a GPU.

    On Linux the kernel keeps the highest resident size since it was last reset, and `own` is that less the
    pages of files at the phase's end, so a look costs 0.1 ms and no highest point between two looks is
    missed. Other systems cannot be reset: there it is what the phase's end finds.
    """

    def __init__(self, device: torch.device) -> None:
        self.phases: dict[str, Held] = {}
        """The highest of each phase, above `before`."""
        self._device = device
        free, total = torch.cuda.mem_get_info(device) if device.type == "cuda" else (0, 0)
        self.highest = self._read()  # on a GPU not before the line above, which begins CUDA
        """The highest so far."""
        self.before = self._read()
        """The bytes held when the meter was made."""
        self.process = total - free - self.before.whole if total else self.before.whole
        """Bytes of the interpreter and its libraries; on a GPU of CUDA's context and of other programs."""

    def end(self, phase: str) -> Held:
        """End a phase that began where the last one ended; return its highest memory."""
        held = self._read()
        self.highest = Held.most((self.highest, held))
        above = held.above(self.before)
        self.phases[phase] = Held.most((self.phases.get(phase, above), above))
        return held

    def limit(self, free: int, mapped: int) -> int:
        """Return the bytes that the process may hold in all if, at a phase's end, it may take `free` more.

        mapped: bytes of its weights that lie in files, which are counted as if all of them were in memory.
        """
        now = self._read().above(self.before)  # the highest since just now
        return self.process + free + (now.whole if self._device.type == "cuda" else now.own + mapped)

    def gib_of(self, phase: str) -> tuple[float, float]:
        """End a phase; return the highest so far and the phase's, in GiB as they are shown.

        These are of the process's resident memory, on a GPU of its tensors.
        """
        held = self.end(phase)
        is_gpu = self._device.type == "cuda"
        highest, of_phase = (each.own if is_gpu else each.whole for each in (self.highest, held))
        return highest / GIB, of_phase / GIB

    def _read(self) -> Held:
        """Return the highest memory since the last call."""
        if self._device.type != "cuda":
            highest, now = resident_memory()
            forget_highest()
            return Held(highest, highest - (now.whole - now.own))
        device = self._device
        held = Held(torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return held


def resident_memory() -> tuple[int, Held]:
    """Return the highest resident bytes of this process since `forget_highest`, and what it holds now.

    getrusage would tell the same, but no less than the parent held when it started this process.
    Source: docs.kernel.org, filesystems/proc, `VmHWM`.
    """
    if not psutil.LINUX:
        now = psutil.Process().memory_info().rss
        return now, Held(now, now)
    status = _STATUS.read_bytes()
    highest, now, own = (
        1024 * int(status[status.index(name) + len(name) :].split(None, 1)[0]) for name in _SIZES
    )
    return highest, Held(now, own)


def forget_highest() -> None:
    """Let the kernel keep the highest resident size anew, where it can be told to (`clear_refs`)."""
    try:
        _CLEAR_REFS.write_bytes(b"5")
    except OSError:  # no Linux, or a container that keeps the file: there it is the highest so far
        return
