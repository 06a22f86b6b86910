"""The processor's instructions as torch uses them, and the free memory: defaults are chosen by both.

Environment variables that limit the instructions count as if the processor had no others:
`ATEN_CPU_CAPABILITY` for torch's own kernels, `ONEDNN_MAX_CPU_ISA` (or `DNNL_MAX_CPU_ISA`) for oneDNN's,
`FBGEMM_ENABLE_INSTRUCTIONS` for those of int8. Source: github.com/uxlfoundation/oneDNN,
doc/performance_considerations/dispatcher_control.md; github.com/pytorch/FBGEMM, src/Utils.cc.
"""

import os
import platform
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil
import torch

# sets of instructions, each with all of the set before, by the names of torch.cpu.get_capabilities()
_AVX2: frozenset[str] = frozenset({"avx2"})
_AVX512 = _AVX2 | {"avx512_f"}
_VNNI = _AVX512 | {"avx512_vnni"}
_BF16 = _VNNI | {"avx512_bf16"}
_FP16 = _BF16 | {"avx512_fp16"}
_AMX = _FP16 | {"amx_int8", "amx_bf16"}
_ALL = _AMX | {"amx_fp16"}
_ONEDNN = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": _AVX2,
    "AVX2_VNNI": _AVX2,
    "AVX2_VNNI_2": _AVX2,
    "AVX512_CORE": _AVX512,
    "AVX512_CORE_VNNI": _VNNI,
    "AVX512_CORE_BF16": _BF16,
    "AVX512_CORE_FP16": _FP16,
    "AVX10_1_512": _FP16,
    "AVX10_2": _FP16,
    "AVX10_2_512": _FP16,
    "AVX512_CORE_AMX": _AMX,
    "AVX10_1_512_AMX": _AMX,
}
"""Instructions that each value of `ONEDNN_MAX_CPU_ISA` leaves; any other value leaves all.

Source: github.com/uxlfoundation/oneDNN, doc/performance_considerations/dispatcher_control.md.
"""

_FBGEMM = {
    "AVX2": _AVX2,
    "AVX512": _AVX512,
    "AVX512_256": _AVX512,
    "AVX512_E1": _VNNI,
    "AVX512_E1_256": _VNNI,
}
"""Instructions that each value of `FBGEMM_ENABLE_INSTRUCTIONS` leaves."""

_ATEN: dict[str, frozenset[str]] = {"DEFAULT": frozenset(), "AVX2": _AVX2}
"""Instructions that torch's own kernels are left with, by `torch.backends.cpu.get_cpu_capability()`."""

_ARM = frozenset({"bf16", "fp16_arith"})

RESERVED_ADDRESSES = 128 * 2**20
"""Addresses that count as taken where they are limited: glibc reserves 64 MiB for a thread that allocates.

Source: sourceware.org/glibc/wiki/MallocInternals, "Arenas and Heaps"."""

RESERVED = 64 * 2**20
"""Bytes that count as taken: of libraries that are imported later, of threads, of files that are written."""

CAPS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "FBGEMM_ENABLE_INSTRUCTIONS")
"""Environment variables that limit the instructions."""

_ZEN = {"23": "Zen 1 or 2", "25": "Zen 3 or 4", "26": "Zen 5"}
"""AMD's processors do not say more than EPYC: by their family in /proc/cpuinfo."""

_CPU_INFO = Path("/proc/cpuinfo")
_imagined: ContextVar[tuple[bool, int] | None] = ContextVar("imagined", default=None)
_OWN_MAPS = Path("/proc/self/maps")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def cpu_has(*instructions: str) -> bool:
    """True if the CPU has one of these instructions, by torch's names, and no environment variable hides it.

    False for all if torch is too old to list them.
    """
    assert set(instructions) <= _ALL | _ARM, instructions
    return not find_instructions().isdisjoint(instructions)


def find_instructions() -> frozenset[str]:
    """Return the instructions that torch may use here, by its names."""
    find_capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)
    has = find_capabilities()
    onednn = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    fbgemm = os.environ.get("FBGEMM_ENABLE_INSTRUCTIONS", "")
    # instructions must be left by all three: which library computes a product is not known here
    usable = _ARM | (
        _ATEN.get(torch.backends.cpu.get_cpu_capability(), _ALL)
        & _ONEDNN.get(onednn.upper(), _ALL)
        & _FBGEMM.get(fbgemm.upper(), _ALL)
    )
    return frozenset(name for name in usable if has.get(name))


def name_processor() -> str:
    """Return the processor's name, with the architecture in front, as far as the system tells them."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", "") or platform.processor()
    zen = _ZEN.get(facts["cpu family"], "") if facts.get("vendor_id") == "AuthenticAMD" else ""
    return ", ".join(filter(None, [platform.machine(), f"{name} ({zen})" if zen else name]))


@contextmanager
def imagining(*, has_bf16: bool, free: int) -> Iterator[None]:
    """Within, `has_bf16` and `free_memory` answer for a machine with this arithmetic and free bytes."""
    token = _imagined.set((has_bf16, free))
    try:
        yield
    finally:
        _imagined.reset(token)


def has_bf16(device: torch.device) -> bool:
    """True if the device computes in bf16 itself; older cards and most CPUs emulate it, slowly."""
    if imagined := _imagined.get():
        return imagined[0]
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type != "cpu" or cpu_has("avx512_bf16", "amx_bf16", "bf16")


def has_fp16(device: torch.device) -> bool:
    """True if the device computes in fp16 itself, as every GPU does."""
    return device.type != "cpu" or cpu_has("avx512_fp16", "amx_fp16", "fp16_arith")


def free_memory(device: torch.device, mapped: int = 0) -> int:
    """Return the bytes that this process may still allocate on a device.

    On a CPU, an equal share for each process of torchrun, of the memory that the machine and the limits of
    its cgroups leave beside `mapped` bytes of files that must stay in memory; and no more than a limit on the
    process's addresses (`ulimit -v`) leaves.
    """
    if imagined := _imagined.get():
        return imagined[1]
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # pages of files count as available: the kernel may drop them, and reads them again at each use
    available: int = psutil.virtual_memory().available - mapped
    left = max(0, min([available, *left_in_cgroups(mapped)]) - RESERVED)
    share = left // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not psutil.LINUX:
        return share
    process = psutil.Process()
    limit: int = process.rlimit(psutil.RLIMIT_AS)[0]
    left = limit - process.memory_info().vms - RESERVED_ADDRESSES
    return share if limit == psutil.RLIM_INFINITY else min(share, max(0, left))


def mapped_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the tensors that lie in files mapped into memory; 0 on other systems than Linux."""
    if not _OWN_MAPS.exists():
        return 0
    places = list[tuple[int, int]]()
    for line in _OWN_MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":  # else no file
            start, end = addresses.split("-")
            places.append((int(start, 16), int(end, 16)))
    sizes = {}  # by address: tensors may share one
    for tensor in tensors:
        if tensor.device.type == "cpu" and (address := tensor.data_ptr()):
            i = bisect_right(places, (address, 2**64)) - 1
            if i >= 0 and address < places[i][1]:
                sizes[address] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())


def left_in_cgroups(mapped: int = 0, *, mounted: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> Iterator[int]:
    """Yield the bytes that each cgroup limit on this process leaves: its own group's and all parents'.

    File caches that the kernel can drop (`inactive_file`) count as left, but for `mapped` bytes of files.
    Source: docs.kernel.org, admin-guide/cgroup-v2 and cgroup-v1/memory.
    """
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2 has one hierarchy for all controllers
            top, reclaimable = mounted, "inactive_file"
            limit, used = "memory.max", "memory.current"
        elif controllers == "memory":  # version 1
            top = mounted / "memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
            reclaimable = "total_inactive_file"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                continue
            try:
                most, taken = ((folder / name).read_text(encoding="utf-8").strip() for name in (limit, used))
                stat = (folder / "memory.stat").read_text(encoding="utf-8")
            except OSError:  # a container does not see its parents; version 2's root has no such files
                continue
            if most.isdigit():  # "max": no limit
                caches = {key: int(value) for key, value in map(str.split, stat.splitlines())}
                # those in use may be the mapped ones: these are taken off once, not twice
                active = caches.get(reclaimable.replace("inactive", "active"), 0)
                dropped = caches.get(reclaimable, 0) + min(mapped, active) - mapped
                yield max(0, int(most) - int(taken) + dropped)
