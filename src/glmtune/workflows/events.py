"""What a workflow reports while it runs, and what it gives at its end. Loads no torch."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from glmtune.training.loop import StepLog


@dataclass(frozen=True, slots=True)
class Note:
    """A line worth reading."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class FirstRow:
    """The first training row as the model sees it, and what is learned of it."""

    whole: str
    learned: str
    where: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """One optimizer step."""

    log: "StepLog"
    steps: int
    line: str | None
    """The progress line, at every `train.log_every` steps."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation of the loss on the validation rows."""

    step: int
    loss: float
    best_before: float | None
    """The lowest earlier loss after a step; None where there is none."""
    is_best: bool


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint."""

    path: Path
    is_best: bool
    difference: float
    """How far the probe's logits are from the base's."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One row of an evaluation is answered."""

    done: int
    total: int


Event = Note | FirstRow | Stepped | Evaluated | Saved | Answered


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run's files are, and its figures."""

    path: Path
    metrics: dict[str, Any]
    """Of a training: steps, first_loss, loss, first_eval_loss, eval_loss, best_eval_loss, best_step, train_s,
    peak_memory_gib. `loss` is that of one step alone, `eval_loss` the mean over the validation rows."""
    scores: dict[str, Any]
    """Of an evaluation: the two score variants, num_rows, num_empty, stopped_share, compute
    (`exact` or `fast`)."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Where an export is, and what `export.json` says of it."""

    path: Path
    facts: dict[str, Any]


Item = TypeVar("Item")
Result = TypeVar("Result")


def drain(events: Generator[Item, None, Result], show: Callable[[Item], None] = lambda _: None) -> Result:
    """Run a workflow to its end, each event shown as it comes; return the workflow's result."""
    with closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            try:
                show(event)
            except KeyboardInterrupt as err:  # the workflow knows what is kept and how to go on
                events.throw(err)
                raise
