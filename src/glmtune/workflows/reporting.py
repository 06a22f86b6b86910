"""report.html of a run, written when the run or an evaluation of it ends."""

from pathlib import Path

from glmtune.errors import GlmtuneError
from glmtune.reports.html.page import write_report
from glmtune.workflows.events import Note


def renew_report(run: Path) -> Note:
    """Write a run's report.html anew; return where it is.

    A failure is a warning: everything that the page would show is saved.
    """
    try:
        return Note(f"report: {write_report([run])}")
    except GlmtuneError as err:
        return Note(f"no report: {err}; {err.hint}", is_warning=True)
