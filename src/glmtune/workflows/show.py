"""Events as lines, for the command line and for Python: a progress bar on a terminal, lines alike everywhere.

Beside `cli` the only module that prints.
"""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from glmtune.log import is_main_process, is_warning, told_to, without_bars
from glmtune.workflows.events import Answered, Evaluated, Event, FirstRow, Note, Saved, Stepped, drain

Result = TypeVar("Result")
OnEvent = Callable[[Event], Any]


class Lines:
    """Prints lines to stdout or stderr, above the progress bar while there is one."""

    def __init__(self, *, on_stderr: bool = False) -> None:
        self._on_stderr = on_stderr
        self._what: str | None = None
        self._bar: Any = None
        self._task: Any = None

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
    def bar(self, what: str) -> Iterator[None]:
        """Inside, show a progress bar from the first `advance` on, if this is a terminal.

        Not earlier: loading a model shows a bar of its own.
        """
        self._what = what if self._stream.isatty() and is_main_process() else None
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()
            self._bar = self._what = None

    def advance(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._bar is None and self._what:
            self._start(self._what, total)
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def _start(self, what: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
        self._bar = Progress(*columns, transient=True, console=Console(stderr=self._on_stderr))
        self._task = self._bar.add_task(what, total=total)
        self._bar.start()


class Shown:
    """Says each event in one line and moves the bar.

    A best evaluation and its checkpoint are one line: it is said when the checkpoint is there. How far the
    probe's logits have moved is said of the first checkpoint; the card of each has it.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._found = ""
        self._has_saved = False

    def __call__(self, event: Event) -> None:
        """Say it."""
        lines = self._lines
        match event:
            case Note(text, is_warning):
                (lines.warn if is_warning else lines.say)(text)
            case FirstRow(whole, learned, where):
                lines.say(f"first row ({where}), as the model reads it:\n{_indent(whole)}")
                lines.say(f"what is learned of it:\n{_indent(learned)}")
            case Stepped(log, steps, line):
                lines.advance(log.step, steps)
                if line:
                    lines.say(line)
            case Evaluated():
                self._evaluated(event)
            case Saved():
                self._saved(event)
            case Answered(done, total):
                lines.advance(done, total)

    def _evaluated(self, event: Evaluated) -> None:
        text = f"Evaluation Loss: {event.loss:.5f} (step {event.step})"
        if not event.is_best:
            self._lines.say(text)
            return
        before, loss = event.best_before, event.loss
        self._found = f"{text}; "
        if before is not None:
            self._found += f"Min eval loss has been updated: {before:.5f} --> {loss:.5f}; "

    def _saved(self, event: Saved) -> None:
        what = "Best model" if event.is_best else "Model"
        probed = f" (the probe's logits differ from the base's by {event.difference:.3g})"
        self._lines.say(f"{self._found}{what} has saved at {event.path}{'' if self._has_saved else probed}")
        self._found, self._has_saved = "", True
        if not event.difference:
            self._lines.warn("nothing was learned so far, or too little to show: a zero update is not opened")


def attend(
    events: Generator[Event, None, Result], what: str, *, quiet: bool, on_event: OnEvent | None
) -> Result:
    """Run a workflow for Python: its events go to `on_event`, or to nobody, or as lines to stderr.

    `what` is written before the progress bar.
    """
    if on_event is None and not quiet:
        lines = Lines(on_stderr=True)
        with lines.bar(what):
            return drain(events, Shown(lines))
    hear = on_event or (lambda _: None)
    with told_to(lambda text: hear(Note(text, is_warning=is_warning(text)))), without_bars():
        return drain(events, hear)


def _indent(text: str) -> str:
    """A block under a heading, line breaks kept."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
