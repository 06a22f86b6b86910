"""`glmtune compare`."""

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmtune.cli.console import PATH, counted, plain

if TYPE_CHECKING:
    from rich.table import Table

    from glmtune.reports.compare import Comparison, RunFigures

HEAD_WIDTH, RUN_WIDTH = 26, 18
"""Widths in characters: of the column of names, and the least width of each run's column."""
NOTHING = "-"


@click.command(short_help="Put training runs side by side.")
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN RUN...")
@click.option(
    "--at",
    multiple=True,
    type=int,
    help="Compare the loss at this step; else at the last that all have made.",
)
@click.option("--output", type=PATH, help="New folder of the results; else runs/compare, -2, ...")
def compare(runs: tuple[Path, ...], at: tuple[int, ...], output: Path | None) -> None:
    """Put two or more runs side by side: speed, memory, losses, scores, answers; no model is loaded.

    The tables are printed; compare.png (loss over steps and over time) and compare.json are written to a
    new folder. Runs that are still training can be compared too.

    \b
      glmtune compare runs/lora runs/ptuning
      glmtune compare runs/lora runs/ptuning --at 100 --at 200 --output runs/lora-or-ptuning
    """
    from rich.console import Console

    from glmtune.reports.compare import compare_runs
    from glmtune.run_files import free_folder
    from glmtune.workflows.show import Lines

    folder = output or free_folder(Path("runs/compare"))
    comparison = compare_runs(runs, output=folder, at=at)
    lines, console = Lines(), Console(highlight=False)
    runs_per_table = max(1, (console.width - HEAD_WIDTH) // RUN_WIDTH)
    for start in range(0, len(runs), runs_per_table):
        console.print(_figures_table(comparison, slice(start, start + runs_per_table)))
    for start in range(0, len(runs) if comparison.samples else 0, runs_per_table):
        console.print(_samples_table(comparison, slice(start, start + runs_per_table)))
    for lead in comparison.leads:
        # equal to the step and the second: neither run leads
        if (lead.step, round(lead.seconds)) == (lead.other_step, round(lead.other_seconds)):
            continue
        faster = lead.other_seconds / lead.seconds
        speed = f"{faster:.1f} times faster" if faster >= 1 else f"{1 / faster:.1f} times slower"
        lines.say(
            f"{lead.run} reaches {lead.other}'s best evaluation loss ({lead.loss:.4f}) {speed}: "
            f"after {lead.seconds:.0f} s in place of {lead.other_seconds:.0f} s, "
            f"at step {lead.step} in place of {lead.other_step}"
        )
    for text in comparison.warnings:
        lines.warn(text)
    lines.say(f"picture: {folder / 'compare.png'}; figures: {folder / 'compare.json'}")


def _figures_table(comparison: "Comparison", shown: slice) -> "Table":
    """Return a table with a column of figures for each run of the slice `shown`."""
    from rich.table import Column, Table

    table = Table(Column(overflow="fold"))
    for run in comparison.runs[shown]:
        table.add_column(plain(run.name), overflow="fold")
    for name, values in _rows(comparison):
        table.add_row(plain(name), *map(plain, values[shown]))
    for title, rows in _sections(comparison):
        table.add_section()
        table.add_row(plain(title), style="bold")
        for name, values in rows:
            table.add_row(plain(f"  {name}"), *map(plain, values[shown]))
    return table


def _samples_table(comparison: "Comparison", shown: slice) -> "Table":
    """Return a table with a column of answers to the sample prompts for each run of the slice `shown`."""
    from rich.table import Column, Table

    prompts = Column("asked", ratio=3, overflow="fold")
    table = Table(prompts, show_lines=True, title="The fixed prompts", title_justify="left")
    for run in comparison.runs[shown]:
        table.add_column(plain(f"{run.name}\nstep {run.samples_step}"), ratio=5, overflow="fold")
    for sample in comparison.samples:
        answers = [NOTHING if answer is None else answer for answer in sample.answers]
        table.add_row(plain(sample.prompt), *map(plain, answers[shown]))
    return table


def _rows(comparison: "Comparison") -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each figure that every comparison has, and its text for each run."""
    from glmtune.reports.recorded_run import MEAN_STEPS

    runs = comparison.runs

    def row(name: str, show: Callable[["RunFigures"], str | None]) -> tuple[str, list[str]]:
        return name, [show(run) or NOTHING for run in runs]

    yield row("method", lambda run: run.method)
    if len({run.trained_on for run in runs}) > 1:
        yield row("trained on", lambda run: run.trained_on)
    if len({run.evaluated_on for run in runs}) > 1:
        yield row("evaluated on", lambda run: run.evaluated_on)
    yield row("trainable parameters", _trainable)
    yield row("size on disk", lambda run: _number(run.size_bytes, "{:,.2f} MB", scale=1e-6))
    yield row("steps", lambda run: f"{run.steps:,}" + ("" if run.is_finished else ", not finished"))
    yield row("training time", lambda run: str(timedelta(seconds=round(run.train_s))))
    yield row("steps/s", lambda run: _number(run.steps_per_s, "{:.2f}"))
    yield row("tokens/s", lambda run: _number(run.tokens_per_s, "{:,.0f}"))
    yield row("peak memory", lambda run: _number(run.peak_memory_gib, "{:.2f} GiB"))
    yield row(
        "best evaluation loss",
        lambda run: _number(run.best_eval_loss, f"{{:.4f}} at step {run.best_step}"),
    )
    if any(run.verdict for run in runs):
        yield row(
            "general prompts", lambda run: _number(run.general_kl, f"{run.verdict}, {{:.3g}} nats a token")
        )
    for step in runs[0].eval_losses:
        yield f"evaluation loss at step {step}", [_loss(run.eval_losses[step]) for run in runs]
    for step in runs[0].losses:
        yield (
            f"loss at step {step}, mean of {min(step, MEAN_STEPS)}",
            [_loss(run.losses[step]) for run in runs],
        )


def _sections(comparison: "Comparison") -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """Yield the title and rows of each further section: scores by test file, and settings that differ."""
    from glmtune.reports.recorded_run import TURN_SCORE

    kinds = {scores.key: scores for run in comparison.runs for scores in run.scores}
    for key, example in kinds.items():
        # a run that was not evaluated on these rows has no scores of them
        found = [
            next((scores for scores in run.scores if scores.key == key), None) for run in comparison.runs
        ]
        rows = [
            (name, [_score(scores.values if scores else {}, name) for scores in found])
            for name in example.values
        ]
        turns = {turn: of["num_rows"] for scores in found if scores for turn, of in scores.turns.items()}
        for turn, number in sorted(turns.items()):
            cells = [_score(scores.turns.get(turn, {}) if scores else {}, TURN_SCORE) for scores in found]
            rows.append((f"{TURN_SCORE}, turn {turn}, {counted(int(number), 'row')}", cells))
        yield f"{Path(example.data).stem}, {example.num_rows} rows", rows
    differing = []
    for name, settings in comparison.differences.items():
        lists = [", ".join(map(str, value)) if isinstance(value, list) else value for value in settings]
        texts = ["empty" if value is None else str(value) for value in lists]
        last_parts = [Path(text).name for text in texts]  # of paths, if these still tell the runs apart
        differing.append((name, last_parts if len(set(last_parts)) == len(set(texts)) else texts))
    if differing:
        yield "settings that differ", differing


def _score(scores: Mapping[str, float], name: str) -> str:
    from glmtune.evaluation.metrics import with_scale

    return with_scale(scores[name], name) if name in scores else NOTHING


def _trainable(run: "RunFigures") -> str | None:
    count, total = run.trainable_parameters, run.all_parameters
    if count is None:
        return None
    share = f" ({100 * count / total:.3g} %)" if total else ""
    return f"{count:,}{share}"


def _loss(loss: float | None) -> str:
    return _number(loss, "{:.4f}") or NOTHING


def _number(value: float | None, form: str, *, scale: float = 1) -> str | None:
    return None if value is None else form.format(value * scale)
