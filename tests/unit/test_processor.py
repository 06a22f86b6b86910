"""What the CPU has is what its caps leave, and free memory what its cgroups leave."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.processor import cpu_has, free_memory, has_bf16, has_fp16, left_in_cgroups, mapped_bytes

CPU = torch.device("cpu")
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "FBGEMM_ENABLE_INSTRUCTIONS")
NAMES = ("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16")


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor that has everything, and no cap."""
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: dict.fromkeys((*NAMES, "avx512_f", "avx2"), True)
    )
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for name in CAPS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("cap", "left"),
    [
        ("AVX2", ()),
        ("avx2", ()),
        ("AVX2_VNNI", ()),
        ("AVX512_CORE", ()),
        ("AVX512_CORE_VNNI", ("avx512_vnni",)),
        ("AVX512_CORE_BF16", ("avx512_vnni", "avx512_bf16")),
        ("AVX10_1_512", ("avx512_vnni", "avx512_bf16", "avx512_fp16")),
        ("AVX512_CORE_AMX", NAMES[:-1]),
        ("AVX10_1_512_AMX_FP16", NAMES),
        ("DEFAULT", NAMES),
        ("no such cap", NAMES),
    ],
)
def test_onednns_cap_hides_what_came_later(
    cap: str, left: tuple[str, ...], newest: pytest.MonkeyPatch
) -> None:
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        newest.setenv(variable, cap)
        assert tuple(name for name in NAMES if cpu_has(name)) == left
        assert has_bf16(CPU) == ("avx512_bf16" in left)
        assert has_fp16(CPU) == ("avx512_fp16" in left)
        newest.delenv(variable)


@pytest.mark.parametrize(("kernels", "left"), [("AVX512", NAMES), ("AVX2", ()), ("DEFAULT", ())])
def test_the_cap_of_torchs_own_kernels_hides_what_came_later(
    kernels: str, left: tuple[str, ...], newest: pytest.MonkeyPatch
) -> None:
    newest.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    assert tuple(name for name in NAMES if cpu_has(name)) == left


@pytest.mark.parametrize(
    ("cap", "left"),
    [("avx2", ()), ("AVX512_256", ()), ("AVX512_E1", ("avx512_vnni",)), ("no such cap", NAMES)],
)
def test_the_cap_of_w8a8s_kernels_hides_what_came_later(
    cap: str, left: tuple[str, ...], newest: pytest.MonkeyPatch
) -> None:
    newest.setenv("FBGEMM_ENABLE_INSTRUCTIONS", cap)
    assert tuple(name for name in NAMES if cpu_has(name)) == left


@pytest.mark.parametrize("cap", [pytest.param("default", marks=pytest.mark.slow), "avx2"])
def test_torch_says_its_own_cap(cap: str) -> None:
    code = "import torch; from glmtune.processor import has_bf16; print(has_bf16(torch.device('cpu')))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ATEN_CPU_CAPABILITY": cap},
        capture_output=True,
        text=True,
        check=True,
    )
    is_arm = torch.cpu.get_capabilities().get("bf16")
    assert done.stdout.strip() == str(bool(is_arm))


def test_caps_of_x86_hide_nothing_of_arm(newest: pytest.MonkeyPatch) -> None:
    newest.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True, "fp16_arith": True})
    newest.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert has_bf16(CPU)
    assert has_fp16(CPU)
    assert not cpu_has("amx_bf16")


def test_a_torch_that_cannot_tell_what_the_cpu_has_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not cpu_has("amx_int8")


def write_group(folder: Path, limit: str, used: str, values: tuple[str, str], reclaimable: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit).write_text(f"{values[0]}\n")
    (folder / used).write_text(f"{values[1]}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{reclaimable} 100\n")


def test_a_limit_of_any_group_around_counts_in_both_layouts(tmp_path: Path) -> None:
    new = ("memory.max", "memory.current", "inactive_file")
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for group, values in (("", ("max", "900")), ("pod", ("1000", "700")), ("pod/mine", ("max", "650"))):
        write_group(tmp_path / "v2" / group, *new[:2], values, new[2])
        write_group(tmp_path / "v1" / "memory" / group, *old[:2], values, old[2])
    own = tmp_path / "cgroup"
    own.write_text("1:cpu,cpuacct:/other\n0::/pod/mine\n")
    assert list(left_in_cgroups(mounted=tmp_path / "v2", own=own)) == [1000 - 700 + 100]
    own.write_text("4:memory:/pod/mine\n0::/\n")
    assert list(left_in_cgroups(mounted=tmp_path / "v1", own=own)) == [1000 - 700 + 100]
    own.write_text("4:memory:/docker/seen/from/outside\n")
    assert list(left_in_cgroups(mounted=tmp_path / "v1", own=own)) == []
    assert list(left_in_cgroups(mounted=tmp_path, own=tmp_path / "none")) == []


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = free_memory(CPU)
    assert 0 < alone <= psutil.virtual_memory().total
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) < alone / 2


def test_pages_of_files_that_must_stay_are_taken_off_once(tmp_path: Path) -> None:
    """The kernel counts them as used while they are active, and else as caches that it may drop."""
    group = tmp_path / "memory.max"
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    for active, inactive in ((300, 0), (0, 300), (120, 180)):
        group.write_text("1000\n")
        (tmp_path / "memory.current").write_text(f"{400 + active + inactive}\n")  # 400 are no pages of files
        (tmp_path / "memory.stat").write_text(f"active_file {active}\ninactive_file {inactive}\n")
        assert list(left_in_cgroups(300, mounted=tmp_path, own=own)) == [1000 - 400 - 300]


@pytest.mark.skipif(not psutil.LINUX, reason="asks the kernel for its maps")
def test_weights_in_mapped_files_are_told_from_others(tmp_path: Path) -> None:
    save_file({"mapped": torch.ones(5000)}, tmp_path / "one.safetensors")
    (mapped,) = load_file(tmp_path / "one.safetensors").values()
    assert mapped_bytes([mapped, torch.ones(3000), mapped, torch.empty(0)]) == 4 * 5000
    assert free_memory(CPU, 10**15) == 0
