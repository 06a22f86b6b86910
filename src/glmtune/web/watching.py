"""Runs as the page shows them: the state of each in a line, and their report."""

from collections.abc import Sequence
from pathlib import Path

from glmtune.errors import GlmtuneError
from glmtune.files import is_there
from glmtune.reports.html.page import render
from glmtune.reports.recorded_run import read_run
from glmtune.reports.texts import in_time
from glmtune.run_files import RECIPE_FILE
from glmtune.web.markup import error_lines, lines
from glmtune.web.words import Words
from glmtune.workflows.runner import RunState, state_of


def state_lines(paths: Sequence[str], words: Words) -> str:
    """Return the state of each run: how far it is, what it said last, why it ended."""
    parts = []
    for path in paths:
        try:
            parts += _lines_of(state_of(path), words)
        except GlmtuneError as err:
            parts.append(error_lines(err, words))
    return "".join(parts)


def _lines_of(state: RunState, words: Words) -> list[str]:
    key = "run_state" if state.steps is None else "run_state_of"
    steps = f"{state.steps:,}" if state.steps is not None else ""
    facts = words(
        key,
        name=state.folder.name,
        state=words(f"state_{state.state}"),
        step=f"{state.step:,}",
        steps=steps,
    )
    if state.is_live and state.eta_s:
        facts += f" · {words('time_left', time=in_time(state.eta_s))}"
    parts = [lines([facts], "state")]
    if state.message:
        told = [state.message, *([words("hint", text=state.hint)] if state.hint else [])]
        parts.append(lines(told, "error" if state.state == "failed" else "note"))
    elif state.is_live and state.last_line:
        parts.append(lines([state.last_line]))
    return parts


def report_part(paths: Sequence[str], words: Words) -> str:
    """Return the report of one run, or several side by side; empty if none has begun."""
    folders = [Path(path) for path in paths if is_there(Path(path) / RECIPE_FILE)]
    if not folders:
        return ""
    try:
        part = render([read_run(path) for path in folders], words.language, is_part=True)
    except GlmtuneError as err:
        return error_lines(err, words)
    return f'<div class="gt-report">{part}</div>'
