"""All that a run needs to go on exactly where it stopped, besides the weights."""

import random
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from glmtune.errors import CheckpointError

STATE_FILE = "state.pt"
PARTS = {"optimizer", "schedule", "random"}
"""What `collect_state` gives in any case."""

_ANEW = "take the folder from a copy, or train anew, with another output="


def collect_state(optimizer: Optimizer, schedule: LRScheduler, accelerator: Accelerator) -> dict[str, Any]:
    """Optimizer, schedule, loss scaler, and the random numbers of every process (so all must call it)."""
    state: dict[str, Any] = {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": gather_object([_random_state(accelerator.device)]),
    }
    if accelerator.scaler is not None:
        state["scaler"] = accelerator.scaler.state_dict()
    return state


def restore_state(
    folder: Path, optimizer: Optimizer, schedule: LRScheduler, accelerator: Accelerator
) -> dict[str, Any]:
    """Put back what `collect_state` gave, saved as state.pt in `folder`; return the whole file.

    Raises `CheckpointError` if it is missing, broken, or of another number of processes.
    """
    path = folder / STATE_FILE
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as err:
        reason = str(err).strip().splitlines() or [type(err).__name__]
        raise CheckpointError(f"{path}: cannot be read: {reason[0]}", hint=_ANEW) from err
    lacking = PARTS - state.keys() if isinstance(state, dict) else PARTS
    if lacking:
        raise CheckpointError(f"{path}: not a run's state: {', '.join(sorted(lacking))} missing", hint=_ANEW)
    if len(state["random"]) != accelerator.num_processes:
        raise CheckpointError(
            f"{path}: saved by {len(state['random'])} processes, resumed by {accelerator.num_processes}",
            hint="resume with the same number of processes",
        )
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    _set_random_state(state["random"][accelerator.process_index], accelerator.device)
    return state


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
