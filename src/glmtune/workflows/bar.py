"""The line at the bottom of a terminal that shows how far a workflow is: figures, time left, a bar."""

import os
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

LEAST_BAR = 8
"""Columns of the shortest bar; where fewer are left there is none."""
MOST_BAR = 40
GAP = "  "


def can_show(stream: TextIO) -> bool:
    """True if a line of this stream can be written over: a terminal, but no dumb one and no CI's log."""
    is_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown") and not is_ci


class Bar:
    """One line, drawn anew four times a second: what goes on, the share that is done, figures.

    A narrow terminal shows fewer figures, the first ones, and no bar.
    """

    def __init__(self, label: str, *, on_stderr: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        self.activity = label
        """The present activity, in words."""
        self.done, self.total = 0, 0
        self.figures: Sequence[str] = ()
        """Figures, the most important first."""
        self._spinner = Spinner("line")  # ASCII: any terminal can show it
        self.console = Console(stderr=on_stderr)
        # what others print to stdout or stderr meanwhile is written above the line; at the end it is gone
        self._live = Live(self, console=self.console, transient=True, refresh_per_second=4)
        self._live.start()

    def stop(self) -> None:
        """Take the line away."""
        self._live.stop()

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["RenderableType"]:
        """Render the line for the terminal's width at this moment."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        spinner = self._spinner.render(time.monotonic())
        words = [f"{spinner} {self.activity}"]
        if self.total:
            words[0] += f" {self.done}/{self.total}"
        words += self.figures
        widths = list(accumulate(len(GAP) + len(word) for word in words))
        shown = max(1, sum(width - len(GAP) <= options.max_width for width in widths))
        left = options.max_width - widths[shown - 1]
        line = Table.grid(padding=(0, len(GAP), 0, 0))
        cells: list[RenderableType] = [Text(words[0], no_wrap=True, overflow="crop")]
        if self.total and left >= LEAST_BAR:
            cells.append(ProgressBar(self.total, self.done, width=min(left, MOST_BAR)))
        cells += [Text(word, no_wrap=True) for word in words[1:shown]]
        line.add_row(*cells)
        yield line
