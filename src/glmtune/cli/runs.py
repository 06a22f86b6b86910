"""`glmtune runs`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import PATH, print_json

if TYPE_CHECKING:
    from glmtune.reports.listing import Entry
    from glmtune.reports.recorded_run import Scores

WIDTH = 80
DATE = "%Y-%m-%d %H:%M"
UNBROKEN = "\N{NO-BREAK SPACE}"
"""Stands for the spaces within a figure until the lines are broken."""
SHOWN_SCORES = ("rouge-l", "bleu-4")


@click.command(short_help="List runs: base, method, losses, scores, size, memory, state.")
@click.argument("folder", type=PATH, default="runs")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON array.")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER and below, the newest first; without it, those in runs.

    \b
      glmtune runs
      glmtune runs experiments --json
    """
    from dataclasses import asdict

    from glmtune.reports.listing import summarise_runs
    from glmtune.workflows.show import Lines

    entries = summarise_runs(folder)
    if as_json:
        values = [asdict(entry) for entry in entries]
        print_json(values, default=str)
        return
    lines = Lines()
    for entry in entries:
        name = str(entry.path.relative_to(folder)) if entry.path != folder else entry.path.name
        date = entry.changed.strftime(DATE)
        # 12: the state's 8 columns and the gaps around it
        lines.say(f"{name:<{WIDTH - len(date) - 12}}  {entry.state:<8}  {date}")
        figures = " | ".join(figure.replace(" ", UNBROKEN) for figure in _figures(entry))
        for text in (entry.problem, figures, *map(_scores_text, entry.scores)):
            if text:
                shown = click.wrap_text(text, WIDTH, initial_indent="    ", subsequent_indent="      ")
                lines.say(shown.replace(UNBROKEN, " "))
    if not entries:
        lines.say(f"{folder}: no runs here")


def _figures(entry: "Entry") -> Iterator[str]:
    """Yield base, method, steps, best loss, size and memory of a run; nothing if its files are damaged."""
    if not entry.method:
        return
    yield f"{entry.base} in {entry.quant}" if entry.quant else entry.base
    yield entry.method
    yield f"{entry.steps:,} steps"
    if entry.best_eval_loss is not None:
        yield f"best loss {entry.best_eval_loss:.4f} at {entry.best_step:,}"
    if entry.size_bytes is not None:
        yield f"{entry.size_bytes / 1e6:,.2f} MB"
    if entry.peak_memory_gib is not None:
        yield f"peak {entry.peak_memory_gib:.2f} GiB"
    if entry.report is not None:
        yield entry.report.name


def _scores_text(scores: "Scores") -> str:
    from glmtune.evaluation.metrics import with_scale

    known = [name for name in SHOWN_SCORES if name in scores.values]
    shown = ", ".join(f"{name} {with_scale(scores.values[name], name)}" for name in known)
    return f"{scores.data}, {scores.num_rows} rows: {shown}"
