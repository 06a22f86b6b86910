"""The lines of the doctor's report, and work whose failure is such a line."""

import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from glmtune.errors import GlmtuneError, first_line
from glmtune.log import quiet, without_bars
from glmtune.workflows.events import Working

REPORT_IT = "paste this report into an issue: https://github.com/glmtune/glmtune/issues"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    part: str
    """`machine`, `self-test` or `model`."""
    name: str
    text: str
    warning: str = ""
    """A fault and its cure; empty if there is none."""
    has_failed: bool = False
    """True if something was tried and did not work."""


def attempt(part: str, name: str, work: Callable[[], str]) -> Generator[Working | Finding, None, Finding]:
    """Do work that returns its outcome; yield and return that, or the failure, with the seconds."""
    yield Working(f"{part}: {name}")
    start, has_failed = time.perf_counter(), False
    try:
        with quiet(), without_bars():
            text = work()
    except Exception as err:  # noqa: BLE001  # any failure is a line of the report, and the rest goes on
        text, has_failed = str(err), True
        if not isinstance(err, GlmtuneError):
            frame = traceback.extract_tb(err.__traceback__)[-1]
            place = f"{Path(frame.filename).name}:{frame.lineno}"
            text = f"{type(err).__name__}: {first_line(err)} ({place})"
        elif err.hint:
            text = f"{err}; {err.hint}"
    seconds = f"{time.perf_counter() - start:.1f} s"
    word = "failed" if has_failed else "ok"
    found = Finding(part, name, f"{word}, {seconds}: {text}", has_failed=has_failed)
    yield found
    return found
