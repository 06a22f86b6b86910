"""Measurement of a run's highest memory, and the errors of allocations that fail."""

import errno
import sys

import torch

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


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an allocation has failed, of torch, of a library below it or of Python."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, (RuntimeError, ImportError)) and any(words in str(error) for words in FAILED)


def peak_memory_gib(device: torch.device) -> float:
    """Return the highest memory so far in GiB: allocations on a GPU, else this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / GIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
