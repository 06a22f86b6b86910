"""The events that a workflow yields while it runs, and the results that it returns. Loads no torch."""

import warnings
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from glmtune.reports.before_after import AnswerPair
    from glmtune.training.loop import StepLog


@dataclass(frozen=True, slots=True)
class Note:
    """A line of text for the user, or a warning."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class FirstRow:
    """The first training row, decoded: its prompt and completion with control tokens, and its targets."""

    whole: str
    """All tokens of the row."""
    learned: str
    """The tokens with a label, on which the loss is taken."""
    where: str
    """File and line of the row."""

    @property
    def place(self) -> str:
        """The old name of `where`."""
        text = "FirstRow.place is now FirstRow.where; the old name goes with the next release"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return self.where


@dataclass(frozen=True, slots=True)
class Stepped:
    """An optimizer step."""

    log: "StepLog"
    steps: int
    line: str | None
    """The progress line, every `train.log_every` steps; None in between."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation of the loss on the validation rows."""

    step: int
    loss: float
    best_before: float | None
    """The lowest earlier loss, that of the untrained model left out; None if there is none."""
    is_best: bool


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved checkpoint."""

    path: Path
    is_best: bool
    difference: float
    """Largest difference between the probe's logits and the base's, as the card has it."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answered row of an evaluation."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Working:
    """The begin of something that may take a while, such as an evaluation; it ends with the next event."""

    what: str


@dataclass(frozen=True, slots=True)
class BeforeAndAfter:
    """The answers to the sample questions before step 1 and at the end of a run."""

    pairs: "tuple[AnswerPair, ...]"


Event = Note | FirstRow | Stepped | Evaluated | Saved | Answered | Working | BeforeAndAfter


@dataclass(frozen=True, slots=True)
class RunResult:
    """The folder and the figures of a training run or an evaluation."""

    path: Path
    metrics: dict[str, Any]
    """Training: steps, first_loss, loss, first_eval_loss, eval_loss, best_eval_loss, best_step, train_s,
    peak_memory_gib. `loss` is that of one step alone, `eval_loss` the mean over the validation rows. Empty
    for an evaluation. With the report of forgetting also `verdict`, and `general_kl` in nats a token."""
    scores: dict[str, Any]
    """Evaluation: the two score variants, num_rows, num_empty, stopped_share, compute (`exact` or `fast`),
    peak_memory_gib. Empty for a training run."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The folder of an export and the content of its `export.json`."""

    path: Path
    facts: dict[str, Any]


Item = TypeVar("Item")
Result = TypeVar("Result")


def drain(events: Generator[Item, None, Result], show: Callable[[Item], None] = lambda _: None) -> Result:
    """Run a workflow to its end, passing each event to `show`; return the workflow's result."""
    with closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            try:
                show(event)
            except KeyboardInterrupt as err:
                # Ctrl-C hit `show`, outside the generator: hand it in, for the workflow's own `except` knows
                # which files are kept and how to go on
                events.throw(err)
                raise
