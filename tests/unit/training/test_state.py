"""What is no state of a run is refused by name."""

import copy
import errno
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glmtune.errors import CheckpointError
from glmtune.models.pickles import write_pickle
from glmtune.recipe import Train
from glmtune.training.optim import build_optimizer, build_schedule
from glmtune.training.processes import Processes
from glmtune.training.state import (
    STATE_FILE,
    as_state,
    collect_state,
    read_state,
    restore_state,
    write_state,
)  # fmt: skip
from models import tiny_model

Parts = tuple[Any, Any, Processes]


def fresh() -> Parts:
    settings = Train(lr=1e-3)
    optimizer = build_optimizer(tiny_model(), settings)
    return optimizer, build_schedule(optimizer, settings, 3), Processes()


@pytest.fixture
def parts() -> Parts:
    return fresh()


def step(optimizer: Any, schedule: Any, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    schedule.step()


def read(folder: Path, step: int | None = None) -> dict[str, Any]:
    return read_state(folder, step=step)


def test_a_whole_state_is_read_and_put_back(tmp_path: Path, parts: Parts) -> None:
    step(*parts)
    write_state({**collect_state(*parts), "standing": {"step": 1}}, tmp_path)
    expected = torch.rand(3), np.random.rand(3).tolist(), random.random()
    other = fresh()
    step(*other)
    step(*other)
    restore_state(read(tmp_path, 1), *other)
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(3).tolist(), random.random()) == expected[1:]
    (optimizer, schedule, _), (its_optimizer, its_schedule, _) = parts, other
    assert schedule.state_dict() == its_schedule.state_dict()
    held, put_back = optimizer.state_dict(), its_optimizer.state_dict()
    assert held["param_groups"] == put_back["param_groups"]
    assert held["state"].keys() == put_back["state"].keys() != set()
    for key, moments in held["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, put_back["state"][key][name]), (key, name)


def test_a_state_of_a_thousand_processes_is_read(tmp_path: Path, parts: Parts) -> None:
    state = collect_state(*parts)
    # each has its own, as those that processes send one another
    state["random"] = [copy.deepcopy(state["random"][0]) for _ in range(1000)]
    write_state({**state, "standing": {"step": 1}}, tmp_path)
    expected = random.random()
    restore_state(read(tmp_path, 1), *parts)
    assert random.random() == expected


def test_random_numbers_that_an_earlier_version_saved_go_on(parts: Parts) -> None:
    """It saved Python's as a list."""
    state = collect_state(*parts)
    version, internal, gauss = state["random"][0]["python"]
    state["random"][0]["python"] = [version, internal.tolist(), gauss]
    expected = random.random()
    restore_state(state, *parts)
    assert random.random() == expected


def test_a_state_of_another_step_is_refused(tmp_path: Path, parts: Parts) -> None:
    write_state({**collect_state(*parts), "standing": {"step": 3}}, tmp_path)
    with pytest.raises(CheckpointError, match=r"state\.pt: saved at step 3, beside weights of step 4"):
        read(tmp_path, 4)


class Second(Processes):
    """The second of two processes, as far as a state is restored."""

    def __init__(self) -> None:
        super().__init__()
        self.rank = 1


def test_a_new_process_draws_numbers_of_its_own_and_the_same_ones_each_time(parts: Parts) -> None:
    state = collect_state(*parts)
    optimizer, schedule, first = fresh()
    drawn = []
    for processes in (first, Second(), Second()):
        restore_state(state, optimizer, schedule, processes)
        drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()))
    assert drawn[1] == drawn[2]
    assert all(own != others for own, others in zip(drawn[0], drawn[1], strict=True))
    two = {**state, "random": [{}, state["random"][0]]}
    restore_state(two, optimizer, schedule, Second())  # one that was there takes its own
    assert torch.rand(3).tolist() == drawn[0][0]


@pytest.mark.parametrize("changes", [
    {"optimizer": {}}, {"optimizer": {"state": {}, "param_groups": []}}, {"optimizer": None}, {"schedule": 3},
    {"random": [{}]}, {"random": [None]}, {"random": [{"torch": torch.zeros(3)}]},
])  # fmt: skip
def test_a_state_with_wrong_members_is_refused(changes: dict[str, Any], tmp_path: Path, parts: Parts) -> None:
    write_state({**collect_state(*parts), "standing": {"step": 3}, **changes}, tmp_path)
    path = tmp_path / STATE_FILE
    with pytest.raises(CheckpointError, match=r"state\.pt: not this run's state: ") as caught, as_state(path):
        restore_state(read(tmp_path), *parts)
    assert "`glmtune train model=" in caught.value.hint


@pytest.mark.parametrize("changes", [{"standing": 3}, {"standing": {}}, {"random": None}])
def test_a_standing_or_random_numbers_of_another_kind_are_refused(
    changes: dict[str, Any], tmp_path: Path, parts: Parts
) -> None:
    write_state({**collect_state(*parts), "standing": {"step": 3}, **changes}, tmp_path)
    with pytest.raises(CheckpointError, match=r"state\.pt: not this run's state: "):
        read(tmp_path)


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        write_pickle({"weights": torch.zeros(1_000_000)}, Path("/dev/full"))


def test_a_disk_that_fills_up_is_said_and_not_the_end_that_is_missing_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2304 vs 2198")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        write_pickle({}, tmp_path / STATE_FILE)


@pytest.mark.parametrize("content", [b"garbage", b"not a pickle at all\n" * 40, b"\x80\x02garbage", b""])
def test_garbage_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt: ") as caught:
        read(tmp_path)
    assert caught.value.hint
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"optimizer": {}, "random": []}, [1, 2]])
def test_another_file_of_torch_is_refused_by_name(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / STATE_FILE)
    with pytest.raises(CheckpointError, match=r"state\.pt: not a run's state: .*schedule, standing missing"):
        read(tmp_path)
