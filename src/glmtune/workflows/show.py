"""Show a workflow's events as lines, with a progress bar on a terminal, for the command line and for Python.

The only module outside `cli` that prints.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from glmtune.log import is_main_process, is_warning, told_to, without_bars
from glmtune.workflows.bar import Bar, can_show
from glmtune.workflows.events import (
    Answered,
    BeforeAndAfter,
    Evaluated,
    Event,
    FirstRow,
    Note,
    Saved,
    Stepped,
    Working,
    drain,
)

if TYPE_CHECKING:
    from glmtune.training.loop import StepLog

Result = TypeVar("Result")
OnEvent = Callable[[Event], Any]


RECENT_STEPS = 10
"""Steps that the figures beside the bar are means of."""


class Lines:
    """Prints lines to stdout or stderr, above the progress bar while there is one."""

    def __init__(self, *, on_stderr: bool = False) -> None:
        self._on_stderr = on_stderr
        self._label: str | None = None
        """Text before the progress bar; None if no bar is to be shown."""
        self._bar: Bar | None = None
        self._recent: deque[StepLog] = deque(maxlen=RECENT_STEPS)
        self._began: tuple[float, int] | None = None
        """The moment of the first answer of an evaluation, and the number of answers at it."""

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self._on_stderr else sys.stdout

    def say(self, text: str) -> None:
        """Print one line."""
        if not is_main_process():
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def warn(self, text: str) -> None:
        """Print one warning."""
        self.say(f"warning: {text}")

    @contextmanager
    def bar(self, label: str) -> Iterator[None]:
        """Show a progress bar from the first `follow` to the end of the block, if this is a terminal.

        Not earlier: loading a model shows a bar of its own.
        """
        self._label = label if is_main_process() and can_show(self._stream) else None
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()
            self._bar = self._label = None

    def follow(self, event: Event) -> None:
        """Move the bar to what an event tells; without a bar, print the line that a step may have."""
        if self._bar is None and self._label and isinstance(event, Stepped | Answered | Working):
            self._bar = Bar(self._label, on_stderr=self._on_stderr)
        if self._bar is None or self._label is None:
            if isinstance(event, Stepped) and event.line:
                self.say(event.line)
            return
        from glmtune.training.progress import clock_time, show_figures

        bar = self._bar
        bar.activity = self._label
        match event:
            case Stepped(log, steps, _):
                self._recent.append(log)
                bar.done, bar.total, bar.figures = log.step, steps, show_figures(self._recent, steps)
            case Answered(done, total):
                if self._began is None or done <= bar.done:  # the first answer of a file of rows
                    self._began = (time.monotonic(), done)
                since, first = self._began
                bar.done, bar.total, bar.figures = done, total, ()
                if done > first:
                    left = (time.monotonic() - since) / (done - first) * (total - done)
                    bar.figures = (f"{clock_time(left)} left",)
            case Working(what):
                bar.activity = what


class Shown:
    """Prints each event as a line and moves the progress bar.

    A best evaluation and the checkpoint it leads to share one line, printed once the checkpoint is saved. The
    probe's difference is printed for the first checkpoint only; the card of each checkpoint has it.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._best_text = ""
        """Text of a best evaluation whose checkpoint is not saved yet."""
        self._has_saved = False

    def __call__(self, event: Event) -> None:
        """Print one event."""
        lines = self._lines
        lines.follow(event)
        match event:
            case Note(text, is_warning):
                (lines.warn if is_warning else lines.say)(text)
            case FirstRow(whole, learned, where):
                lines.say(f"first row ({where}), as the model reads it:\n{_indent(whole)}")
                lines.say(f"what is learned of it:\n{_indent(learned)}")
            case Evaluated(step, loss, best_before, is_best):
                text = f"Evaluation Loss: {loss:.5f} (step {step})"
                if not is_best:
                    lines.say(text)
                    return
                self._best_text = f"{text}; "
                if best_before is not None:
                    self._best_text += f"Min eval loss has been updated: {best_before:.5f} --> {loss:.5f}; "
            case BeforeAndAfter(pairs):
                lines.say("The same questions, before step 1 and at the end:")
                for pair in pairs:
                    lines.say(pair.in_words())
            case Saved(path, is_best, difference):
                model = "Best model" if is_best else "Model"
                probed = ""
                if not self._has_saved:
                    probed = f" (the probe's logits differ from the base's by {difference:.3g})"
                lines.say(f"{self._best_text}{model} has saved at {path}{probed}")
                self._best_text, self._has_saved = "", True
                if not difference:
                    lines.warn(
                        "nothing was learned so far, or too little to show: a zero update is not opened"
                    )


def attend(
    events: Generator[Event, None, Result], label: str, *, quiet: bool, on_event: OnEvent | None
) -> Result:
    """Run a workflow for Python; its events go to `on_event`, or nowhere if `quiet`, else as lines to stderr.

    `label` stands before the progress bar.
    """
    if on_event is None and not quiet:
        lines = Lines(on_stderr=True)
        with lines.bar(label):
            return drain(events, Shown(lines))
    # lines that functions below tell on their own become events too, instead of going to stderr
    hear = on_event or (lambda _: None)
    with told_to(lambda text: hear(Note(text, is_warning=is_warning(text)))), without_bars():
        return drain(events, hear)


def _indent(text: str) -> str:
    """Return a block of text indented by four, line breaks kept."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
