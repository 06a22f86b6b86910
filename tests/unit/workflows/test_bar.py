"""The progress bar, on a terminal of this process's own."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from glmtune.training.loop import StepLog
from glmtune.workflows.events import Answered, Evaluated, Event, Note, Saved, Stepped, Working
from glmtune.workflows.show import Lines, Shown

pty = pytest.importorskip("pty", reason="needs a Unix terminal")
WIDTHS = [100, 40, 20]


class Terminal:
    """What is written to it, and what a screen shows at the end."""

    def __init__(self) -> None:
        self.end, self.stream_end = pty.openpty()
        self.stream = os.fdopen(self.stream_end, "w", encoding="utf-8")
        self.written = ""
        self.reader = Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        parts = []
        while part := self._part():
            parts.append(part)
        self.written = b"".join(parts).decode()

    def _part(self) -> bytes:
        try:
            return os.read(self.end, 4096)
        except OSError:  # how Linux tells that the other end is closed
            return b""

    def close(self) -> str:
        """End the writing; return all that was written."""
        self.stream.close()
        self.reader.join()
        os.close(self.end)
        return self.written


def screen(written: str) -> list[str]:
    """The lines that are seen at the end: carriage returns, lines cleared, the cursor sent up."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column] + part + lines[row][column + len(part) :]
            column += len(part)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def plain(written: str) -> str:
    return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", written)


def stepped(step: int, of: int = 4) -> Stepped:
    log = StepLog(
        step, 2.5, 1.0, 1e-4, tokens=10, tokens_per_s=1234.0, step_s=30.0, peak_memory_gib=1.25, memory_gib=1
    )
    return Stepped(log, of, f"global step {step}")


RUN: list[Event] = [
    Note("plan: 4 steps"),
    Working("evaluating"),
    Evaluated(0, 3.0, None, False),
    stepped(1),
    stepped(2),
    Note("careful", is_warning=True),
    Working("evaluating"),
    Evaluated(2, 2.25, None, False),
    Working("saving"),
    Saved(Path("runs/x"), is_best=False, difference=0.5),
    stepped(3),
]
KEPT = [
    "plan: 4 steps",
    "Evaluation Loss: 3.00000 (step 0)",
    "warning: careful",
    "Evaluation Loss: 2.25000 (step 2)",
    "Model has saved at runs/x (the probe's logits differ from the base's by 0.5)",
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    for name in ("CI", "NO_COLOR", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    opened: list[Terminal] = []

    def show(*events: Event | type[BaseException], columns: int = 100, **settings: str) -> str:
        """All that the events write to a terminal; a class of errors is raised in its place."""
        for name, value in {"TERM": "xterm", "COLUMNS": str(columns), **settings}.items():
            monkeypatch.setenv(name, value)
        opened.append(Terminal())
        lines = Lines()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", opened[-1].stream)
            _show(lines, events)
        return opened.pop().close()

    yield show
    for terminal in opened:
        terminal.close()


def _show(lines: Lines, events: tuple[Any, ...]) -> None:
    shown = Shown(lines)
    try:
        with lines.bar("training"):
            for event in events:
                if isinstance(event, type):
                    raise event
                shown(event)
                if lines._bar is not None:
                    lines._bar._live.refresh()  # not a quarter of a second later
    except KeyboardInterrupt:
        lines.say("interrupted")


def test_the_bar_shows_step_loss_time_left_speed_and_memory(run) -> None:
    written = plain(run(*RUN))
    assert re.search(r"training 2/4 .*  loss 2\.5000  00:01:00 left  1,234 tokens/s  1\.25 GiB", written)
    assert "global step" not in written  # the bar says it


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("end", [(), (KeyboardInterrupt,)])
def test_the_lines_stand_above_the_bar_and_no_bar_is_left_however_it_ends(run, columns, end) -> None:
    lines = screen(run(*RUN, *end, columns=columns))
    assert lines == [*KEPT, *(["interrupted"] if end else [])]


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_bar_is_no_wider_than_the_terminal_and_begins_with_the_step(run, columns) -> None:
    written = plain(run(*RUN, columns=columns))
    drawn = [part for part in re.split(r"[\r\n]+", written) if "training" in part]
    assert any("training 3/4" in part for part in drawn)
    assert max(map(len, drawn)) <= columns


def test_what_takes_a_while_is_named_in_the_bar_until_it_is_over(run) -> None:
    written = plain(run(*RUN))
    assert "evaluating 2/4" in written
    assert "saving 2/4" in written
    assert "training 2/4" in written[written.index("Model has saved") :]


def test_an_evaluation_shows_its_rows_and_the_time_left(run) -> None:
    written = plain(run(Working("answering"), *(Answered(done, 9) for done in (1, 2, 3))))
    assert re.search(r"training 3/9 .*  \d\d:\d\d:\d\d left", written)


@pytest.mark.parametrize("settings", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_dumb_terminal_and_the_log_of_a_ci_get_lines_alone(run, settings) -> None:
    written = run(*RUN, **settings)
    assert "\x1b" not in written
    assert [line for line in written.splitlines() if "global step" in line] == [
        f"global step {step}" for step in (1, 2, 3)
    ]


def test_no_color_leaves_the_bar_without_colours(run) -> None:
    assert re.search(r"\x1b\[[0-9;]*m", run(*RUN))
    assert not re.search(r"\x1b\[[0-9;]*(3|9|4|10)[0-7]m", run(*RUN, NO_COLOR="1"))


def test_only_the_main_process_shows_anything(run) -> None:
    assert run(*RUN, RANK="1") == ""
