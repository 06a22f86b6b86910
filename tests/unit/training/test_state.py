"""What is no state of a run is refused by name."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from glmtune.errors import CheckpointError
from glmtune.recipe import Train
from glmtune.training.optim import build_optimizer, build_schedule
from glmtune.training.state import STATE_FILE, collect_state, restore_state
from models import tiny_model


def restore(folder: Path) -> None:
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True)
    settings = Train(lr=1e-3)
    optimizer = build_optimizer(tiny_model(), settings)
    schedule = build_schedule(optimizer, settings, 3)
    if not (folder / STATE_FILE).exists():
        torch.save(collect_state(optimizer, schedule, accelerator), folder / STATE_FILE)
    restore_state(folder, optimizer, schedule, accelerator)


def test_a_whole_state_is_read(tmp_path: Path) -> None:
    restore(tmp_path)


@pytest.mark.parametrize("content", [b"garbage", b"not a pickle at all\n" * 40, b"\x80\x02garbage", b""])
def test_garbage_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read") as caught:
        restore(tmp_path)
    assert "train anew" in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"optimizer": {}, "random": []}, [1, 2]])
def test_another_file_of_torch_is_refused_by_name(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / STATE_FILE)
    with pytest.raises(CheckpointError, match=r"state\.pt: not a run's state: .*schedule missing"):
        restore(tmp_path)
