"""What the processor can do as torch uses it, and the memory that is left: what every default rests on.

The caps of the environment count as if the processor were that old: `ATEN_CPU_CAPABILITY`, which torch's own
kernels heed, `ONEDNN_MAX_CPU_ISA` (or `DNNL_MAX_CPU_ISA`), which oneDNN's do, and
`FBGEMM_ENABLE_INSTRUCTIONS`, which those of W8A8 do. Source: github.com/uxlfoundation/oneDNN,
doc/performance_considerations/dispatcher_control.md; github.com/pytorch/FBGEMM, src/Utils.cc.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

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
"""What a cap of oneDNN's leaves; others leave all there is, as an unknown one does."""
_FBGEMM = {
    "AVX2": _AVX2,
    "AVX512": _AVX512,
    "AVX512_256": _AVX512,
    "AVX512_E1": _VNNI,
    "AVX512_E1_256": _VNNI,
}
"""The same of FBGEMM's."""
_ATEN: dict[str, frozenset[str]] = {"DEFAULT": frozenset(), "AVX2": _AVX2}
"""The same of torch's own, by torch's word for what its kernels use."""
_ARM = frozenset({"bf16", "fp16_arith"})

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def cpu_has(*instructions: str) -> bool:
    """Whether the CPU has one of these, by torch's names, and no cap hides it.

    Not so where torch is too old to say.
    """
    assert set(instructions) <= _ALL | _ARM, instructions
    find_capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)
    has = find_capabilities()
    left = _ARM | _left_by_caps()
    return any(has.get(name) and name in left for name in instructions)


def _left_by_caps() -> frozenset[str]:
    """Of the instructions of x86."""
    onednn = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    fbgemm = os.environ.get("FBGEMM_ENABLE_INSTRUCTIONS", "")
    return (
        _ATEN.get(torch.backends.cpu.get_cpu_capability(), _ALL)
        & _ONEDNN.get(onednn.upper(), _ALL)
        & _FBGEMM.get(fbgemm.upper(), _ALL)
    )


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 itself; older cards and most CPUs imitate it, slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type != "cpu" or cpu_has("avx512_bf16", "amx_bf16", "bf16")


def has_fp16(device: torch.device) -> bool:
    """Whether the device computes in fp16 itself, as every card does."""
    return device.type != "cpu" or cpu_has("avx512_fp16", "amx_fp16", "fp16_arith")


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device.

    Of a CPU its share among the processes that torchrun started, of what the machine and its cgroups leave.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available: int = psutil.virtual_memory().available
    return min([available, *left_in_cgroups()]) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def left_in_cgroups(mounted: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> Iterator[int]:
    """Bytes that each limit on this process leaves: that of its group and those of the groups around it.

    What files take that can be read again (`inactive_file`) counts as left. Source: docs.kernel.org,
    admin-guide/cgroup-v2 and cgroup-v1/memory.
    """
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else ():
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            top, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif kinds == "memory":
            top = mounted / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from _left_in(folder, *names)


def _left_in(group: Path, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    """Nothing where the group is not to be seen from here, or has no limit."""
    try:
        most, taken = ((group / name).read_text(encoding="utf-8").strip() for name in (limit, used))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    except OSError:
        return
    if most.isdigit():
        yield max(0, int(most) - int(taken) + int(stat.get(reclaimable, 0)))
