"""Programs that show a run's figures while it trains: TensorBoard, Weights & Biases, trackio.

None of them can stop or delay a run for long: whatever fails in one is a warning, once, and the run goes on
without it. Its figures are in metrics.jsonl all the same.
"""

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from contextvars import copy_context
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from glmtune.errors import first_line
from glmtune.extras import require
from glmtune.log import tell

FIGURES = ("loss", "eval_loss", "lr", "grad_norm", "tokens_per_s", "memory_gib", "epoch")
"""Keys of a line of metrics.jsonl that are shown."""
PROJECT = "glmtune"
"""Name of the project that runs are filed under, unless the program's own variable names another."""
LONGEST_LOGIN_S, LONGEST_END_S = 20.0, 60.0
"""Seconds that W&B may take to begin a run before it is kept offline, and any program to end one."""
KEPT = "its figures are in metrics.jsonl"


class Tracker(NamedTuple):
    """One program's run: takes figures at a step, and finishes."""

    add: Callable[[Mapping[str, float], int], object]
    close: Callable[[], object]


class Trackers:
    """The programs that a run's figures go to."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raise `MissingDependencyError` for a program that is not installed."""
        self._names = tuple(dict.fromkeys(names))
        self._open: dict[str, Tracker] = {}
        for name in self._names:
            require(name, extra=name)

    def begin(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Begin a run of each program, named as the run's folder."""
        for name in self._names:
            tracker = self._attempt(name, partial(PROGRAMS[name], folder, settings))
            if isinstance(tracker, Tracker):
                self._open[name] = tracker

    def add(self, line: Mapping[str, Any]) -> None:
        """Hand on the figures of a line of metrics.jsonl; one that is not finite has no place in a curve."""
        figures = {
            name: float(line[name])
            for name in FIGURES
            if isinstance(line.get(name), int | float) and math.isfinite(line[name])
        }
        for name, tracker in list(self._open.items()):
            self._attempt(name, partial(tracker.add, figures, line["step"]))

    def close(self) -> None:
        """Finish each program's run; one that takes over a minute is left to itself, with a warning."""
        for name, tracker in list(self._open.items()):
            # in the caller's context, whose listener hears the warnings
            act = partial(copy_context().run, self._attempt, name, tracker.close)
            thread = Thread(target=act, daemon=True)
            thread.start()
            thread.join(LONGEST_END_S)
            if thread.is_alive():
                tell(f"warning: train.report_to: {name}: still not done; {KEPT}")
        self._open.clear()

    def _attempt(self, name: str, act: Callable[[], object]) -> object:
        """Return what a program's function returns; if it fails, warn and go on without the program."""
        try:
            return act()
        except Exception as err:  # noqa: BLE001 - whatever happens in another program ends no training
            self._open.pop(name, None)
            tell(f"warning: train.report_to: {name}: {first_line(err)}; the run goes on without it, {KEPT}")
            return None


def _tensorboard(folder: Path, _: Mapping[str, Any]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder / "tensorboard"))

    def add(figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            board.add_scalar(name, value, step)
        board.flush()  # a killed run keeps its curves

    return Tracker(add, board.close)


def _wandb(folder: Path, settings: Mapping[str, Any]) -> Tracker:
    """Begin a run online if there is a login, else offline. W&B never asks for one."""
    import wandb

    # asked at a terminal, or without one refused, if the key is looked for by `init` itself
    wanted = os.environ.get("WANDB_MODE") or ("online" if wandb.setup().settings.api_key else "offline")

    def begin(mode: str) -> Any:
        limits = wandb.Settings(silent=True, init_timeout=LONGEST_LOGIN_S)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        names = {"project": project, "name": folder.resolve().name, "dir": str(folder)}
        return wandb.init(**names, config=dict(settings), mode=mode, settings=limits)

    try:
        run = begin(wanted)
    except Exception as err:
        if wanted != "online":
            raise
        tell(f"warning: train.report_to: wandb: {first_line(err)}; this run is kept offline")
        run, wanted = begin("offline"), "offline"
    if wanted == "offline":
        tell(f"train.report_to: wandb: kept offline in {folder / 'wandb'}; `wandb sync` sends it later")
    return Tracker(lambda figures, step: run.log(dict(figures), step=step), run.finish)


def _trackio(folder: Path, settings: Mapping[str, Any]) -> Tracker:
    """Begin a run in trackio's own folder on this machine; nothing is sent."""
    import trackio

    def close() -> None:
        with redirect_stdout(io.StringIO()):
            trackio.finish()

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    with redirect_stdout(io.StringIO()):  # its greetings and its farewell are no lines of ours
        trackio.init(project=project, name=folder.resolve().name, config=dict(settings))
    return Tracker(lambda figures, step: trackio.log(dict(figures), step=step), close)


PROGRAMS: Mapping[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""The programs of `train.report_to`; each is also the name of its package and of its extra."""
