"""The state for an exact resume: optimizer, schedule, loss scaling and random numbers, but no weights."""

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
"""Keys of every state: those of `collect_state`, and `standing`, the run's progress."""


def collect_state(optimizer: Optimizer, schedule: LRScheduler, processes: Processes) -> dict[str, Any]:
    """Return the state of optimizer, schedule, loss scaling, random numbers. All processes must call it."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    # tensors, lists and numbers only: such a file loads without running code from it
    random_state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(internal), gauss_next],
    }
    if processes.device.type == "cuda":
        random_state["cuda"] = torch.cuda.get_rng_state(processes.device)
    state: dict[str, Any] = {
        "optimizer": processes.optimizer_state(optimizer),
        "schedule": schedule.state_dict(),
        "random": processes.gather(random_state),
    }
    if (scaler := processes.scaler_state()) is not None:
        state["scaler"] = scaler
    return state


def tensor_bytes(value: object) -> int:
    """Return the bytes of all tensors in a state."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.itemsize
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def write_state(state: Mapping[str, Any], folder: Path) -> None:
    """Write a state as state.pt. Raises OSError if the disk does not take it."""
    write_pickle(state, folder / STATE_FILE)


def read_state(folder: Path, *, step: int | None) -> dict[str, Any]:
    """Read a state from `write_state`: the parts of `collect_state` and the caller's own, such as `standing`.

    Its tensors are mapped: no process holds the means of a whole model. `step` is the checkpoint's. Raises
    `CheckpointError` if the file is missing or damaged, or was saved at another step.
    """
    path = folder / STATE_FILE
    try:
        state: dict[str, Any] = read_pickle(path, check_crc=True)
    except CheckpointError as err:
        raise CheckpointError(str(err), hint=train_on_hint(path.parent)) from err
    lacking = PARTS - state.keys() if isinstance(state, dict) else PARTS
    if lacking:
        raise CheckpointError(
            f"{path}: not a run's state: {', '.join(sorted(lacking))} missing",
            hint=train_on_hint(path.parent),
        )
    with as_state(path):  # a damaged file may have any types in these places
        saved_at, _ = state["standing"]["step"], state["random"][0]
    if step is not None and saved_at != step:
        raise CheckpointError(
            f"{path}: saved at step {saved_at}, beside weights of step {step}",
            hint=train_on_hint(path.parent),
        )
    return state


def restore_state(
    state: Mapping[str, Any], optimizer: Optimizer, schedule: LRScheduler, processes: Processes
) -> None:
    """Restore the result of `collect_state`, with this process's own random numbers.

    If it was saved by fewer processes, those that are new begin with numbers drawn from the others'.
    """
    processes.restore_optimizer(optimizer, state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if processes.loss_scale is not None:
        processes.restore_scaler(state["scaler"])
    saved = state["random"]
    random_state = saved[processes.rank % len(saved)]
    torch.set_rng_state(random_state["torch"])
    kind, keys, *rest = random_state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss_next = random_state["python"]
    # earlier versions saved a list
    random.setstate((version, tuple(torch.as_tensor(internal).tolist()), gauss_next))
    if processes.device.type == "cuda":
        torch.cuda.set_rng_state(random_state["cuda"], processes.device)
    if processes.rank >= len(saved):
        seed = int(torch.randint(2**31, ())) + processes.rank
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)  # of the GPU too


@contextmanager
def as_state(path: Path) -> Iterator[None]:
    """Turn the errors that missing or wrong keys of a state cause into a `CheckpointError`."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as err:
        problem = f"{type(err).__name__}: {first_line(err)}"
        raise CheckpointError(
            f"{path}: not this run's state: {problem}", hint=train_on_hint(path.parent)
        ) from err
