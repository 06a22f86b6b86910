"""All that a run needs to go on exactly where it stopped, besides the weights."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from glmtune.errors import CheckpointError, first_line
from glmtune.models.pickles import read_pickle, write_pickle
from glmtune.run_files import train_on_hint
from glmtune.training.processes import Processes

STATE_FILE = "state.pt"
PARTS = {"optimizer", "schedule", "random", "standing"}
"""What is in every state: of `collect_state`, and how the run stood."""


def collect_state(optimizer: Optimizer, schedule: LRScheduler, processes: Processes) -> dict[str, Any]:
    """Optimizer, schedule, loss scaler, and the random numbers of every process (so all must call it)."""
    state: dict[str, Any] = {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": processes.gather(_random_state(processes.device)),
    }
    if (scaler := processes.scaler_state()) is not None:
        state["scaler"] = scaler
    return state


def write_state(state: Mapping[str, Any], folder: Path) -> None:
    """Save a state as state.pt. Raises OSError if the disk does not take it."""
    write_pickle(state, folder / STATE_FILE)


def read_state(folder: Path, *, step: int | None, num_processes: int) -> dict[str, Any]:
    """What `write_state` saved, `collect_state`'s parts and the caller's own, e.g. `standing`.

    `step` is the checkpoint's. Raises `CheckpointError` if the file is missing, damaged, of another step or
    of another number of processes.
    """
    path = folder / STATE_FILE
    try:
        state: dict[str, Any] = read_pickle(path, mmap=False, check_crc=True)
    except CheckpointError as err:
        raise CheckpointError(str(err), hint=train_on_hint(path.parent)) from err
    lacking = PARTS - state.keys() if isinstance(state, dict) else PARTS
    if lacking:
        raise CheckpointError(
            f"{path}: not a run's state: {', '.join(sorted(lacking))} missing",
            hint=train_on_hint(path.parent),
        )
    with as_state(path):
        saved_at, processes = state["standing"]["step"], len(state["random"])
    if step is not None and saved_at != step:
        raise CheckpointError(
            f"{path}: saved at step {saved_at}, beside weights of step {step}",
            hint=train_on_hint(path.parent),
        )
    if processes != num_processes:
        raise CheckpointError(
            f"{path}: saved by {processes} processes, resumed by {num_processes}",
            hint="resume with the same number of processes",
        )
    return state


def restore_state(
    state: Mapping[str, Any], optimizer: Optimizer, schedule: LRScheduler, processes: Processes
) -> None:
    """Put back what `collect_state` gave."""
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if processes.loss_scale is not None:
        processes.restore_scaler(state["scaler"])
    _set_random_state(state["random"][processes.rank], processes.device)


@contextmanager
def as_state(path: Path) -> Iterator[None]:
    """Turn what a state with missing or wrong members makes of its reader into a `CheckpointError`."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as err:
        problem = f"{type(err).__name__}: {first_line(err)}"
        raise CheckpointError(
            f"{path}: not this run's state: {problem}", hint=train_on_hint(path.parent)
        ) from err


def _random_state(device: torch.device) -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
