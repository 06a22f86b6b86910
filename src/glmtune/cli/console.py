"""Lines and progress bars: the bar only on a terminal, lines the same everywhere."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


def is_main_process() -> bool:
    """Only one of the processes that `torchrun` starts prints."""
    return os.environ.get("RANK", "0") == "0"


class Lines:
    """Prints lines, above the progress bar while there is one."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def say(self, text: str) -> None:
        """Print one line to stdout."""
        if not is_main_process():
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text)

    def warn(self, text: str) -> None:
        """Print one warning."""
        self.say(f"warning: {text}")

    @contextmanager
    def bar(self, what: str) -> Iterator[None]:
        """Show a progress bar inside, if this is a terminal."""
        if not (sys.stdout.isatty() and is_main_process()):
            yield
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
        with Progress(*columns, transient=True) as self._bar:
            self._task = self._bar.add_task(what, total=None)
            try:
                yield
            finally:
                self._bar = None

    def advance(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)


def indent(text: str) -> str:
    """A block under a heading, line breaks kept."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
