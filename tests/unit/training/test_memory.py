"""The meter of a process's memory finds what a phase held at most, and no phase has another's."""

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from glmtune.training import memory
from glmtune.training.memory import Held, MemoryMeter

SIZE = 96 * 2**20
FEW = 8 * 2**20
CPU = torch.device("cpu")


def hold(num_bytes: int) -> None:
    """Take so many bytes and give them back."""
    np.ones(num_bytes, dtype=np.uint8).sum()


@pytest.mark.skipif(not psutil.LINUX, reason="asks the kernel")
def test_a_phase_has_what_was_freed_within_it_and_the_next_has_not() -> None:
    meter = MemoryMeter(CPU)
    hold(SIZE)
    held = meter.end("step")
    meter.end("saving")
    assert SIZE - FEW <= meter.phases["step"].own <= SIZE + FEW
    assert meter.phases["saving"].own <= FEW
    assert meter.highest == held
    assert meter.before.whole + meter.phases["step"].whole == held.whole
    highest, of_phase = meter.gib_of("saving")
    assert highest == held.whole / 2**30
    assert of_phase <= highest - (SIZE - FEW) / 2**30


@pytest.mark.skipif(not psutil.LINUX, reason="asks the kernel")
def test_a_phase_that_comes_again_keeps_its_highest() -> None:
    meter = MemoryMeter(CPU)
    hold(SIZE)
    meter.end("step")
    meter.end("step")
    assert meter.phases["step"].own >= SIZE - FEW


@pytest.mark.skipif(not psutil.LINUX, reason="asks the kernel")
def test_pages_of_files_are_resident_and_not_the_process_own(tmp_path: Path) -> None:
    np.ones(SIZE, dtype=np.uint8).tofile(tmp_path / "weights")
    meter = MemoryMeter(CPU)
    mapped = np.memmap(tmp_path / "weights", mode="r")
    assert mapped.min() == 1  # all pages are read
    meter.end("loading")
    held = meter.phases["loading"]
    assert held.whole >= SIZE - FEW
    assert held.own <= held.whole - (SIZE - FEW)


@pytest.mark.parametrize("is_linux", [True, False])
def test_a_system_that_keeps_no_highest_size_tells_the_size_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_linux: bool
) -> None:
    monkeypatch.setattr(psutil, "LINUX", is_linux and psutil.LINUX)
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "gone" / "clear_refs")
    meter = MemoryMeter(CPU)
    kept = np.ones(SIZE, dtype=np.uint8)
    meter.end("step")
    # where the size cannot be reset, some of it was there before the test
    assert 0 <= meter.phases["step"].whole <= SIZE + FEW
    assert meter.highest.whole >= kept.nbytes


def test_the_highest_of_several_is_that_of_each_figure() -> None:
    assert Held.most([Held(5, 1), Held(3, 2)]) == Held(5, 2)
    assert Held(5, 1).above(Held(3, 2)) == Held(2, 0)


def test_a_card_is_asked_for_its_tensors_and_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of 1000 bytes with a context of 100: loading takes 300, a step 450 more for a while."""
    now, highest = {"reserved": 0, "allocated": 0}, {"reserved": 0, "allocated": 0}

    def take(reserved: int, allocated: int) -> None:
        now.update(reserved=reserved, allocated=allocated)
        highest.update({name: max(highest[name], size) for name, size in now.items()})

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (900 - now["reserved"], 1000))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: highest["reserved"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: highest["allocated"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: highest.update(now))
    meter = MemoryMeter(torch.device("cuda"))
    assert meter.process == 100
    take(320, 300)
    meter.end("loading")
    assert meter.limit(900 - now["reserved"], mapped=0) == 1000
    take(800, 750)
    take(800, 310)
    assert meter.gib_of("step") == (750 / 2**30, 750 / 2**30)
    assert meter.gib_of("saving") == (750 / 2**30, 310 / 2**30)
    assert meter.phases == {"loading": Held(320, 300), "step": Held(800, 750), "saving": Held(800, 310)}
