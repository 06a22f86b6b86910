"""report.html: one run, or several side by side, as a single file that opens nothing else."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from glmtune.errors import ConfigError
from glmtune.files import read_text
from glmtune.language import Language, own_language
from glmtune.reports.compare import Comparison, RunFigures, compare_runs
from glmtune.reports.curves import Curve, read_curve
from glmtune.reports.html.charts import Chart, Series, curve_chart, smoothed
from glmtune.reports.html.sections import FIGURES, describe_run, loss_chart, shown_value
from glmtune.reports.output import output_path
from glmtune.reports.recorded_run import RecordedRun, read_run
from glmtune.reports.texts import Text, in_bytes, in_time, text
from glmtune.run_files import REPORT_FILE, write_text

FOLDER = Path(__file__).parent
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class SideBySide:
    """The part of the page that compares runs."""

    names: list[str]
    warnings: tuple[str, ...]
    charts: list[Chart]
    figures: list[tuple[Text, list[str]]]
    """A figure's name and its value for each run."""
    differences: list[tuple[str, list[str]]]
    """A setting's name and its value for each run."""
    samples: list[tuple[str, list[str]]]
    """A prompt and the answer of each run."""


def write_report(
    runs: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    language: Language | None = None,
    force: bool = False,
) -> Path:
    """Write the page of one run or of several; return its path.

    The default is report.html in the run's folder, which is the run's own and is written anew; for several
    runs, report.html in the folder of the first one's folder. `language` is the one shown first. Raises
    `ConfigError` for a folder that is no run and, without `force`, for a file that is there;
    `CheckpointError` for a damaged file of a run, `OutputError` if the page cannot be written.
    """
    if not runs:
        raise ConfigError("no run named", hint="name its folder: runs/...")
    recorded = [read_run(run) for run in runs]
    path = output_path(output, recorded[0].path, REPORT_FILE, is_of_many=len(runs) > 1, force=force)
    write_text(path, render(recorded, language or own_language()))
    return path


def render(runs: Sequence[RecordedRun], language: Language, *, is_part: bool = False) -> str:
    """Return the page of one run or of several. Raises `CheckpointError` for a damaged file of a run.

    `is_part`: return its contents alone, to be shown within another page, which has `part_style` and
    `chart_script`.
    """
    comparison = compare_runs([run.path for run in runs]) if len(runs) > 1 else None
    names = [run.name for run in comparison.runs] if comparison else [runs[0].path.resolve().name]
    return render_page(
        "report.html.jinja",
        language,
        title=" · ".join(names),
        runs=[describe_run(run, name) for run, name in zip(runs, names, strict=True)],
        side_by_side=_side_by_side(runs, comparison) if comparison else None,
        frame="part.html.jinja" if is_part else "frame.html.jinja",
    )


def part_style(around: str) -> str:
    """Return the style of a part, for the elements within those that the selector `around` finds."""
    return f"{around} {{ {read_text(FOLDER / 'report.css')} }}"


def chart_script() -> str:
    """Return the script that shows values beside the pointer, in a page or around a part."""
    return read_text(FOLDER / "charts.js")


def render_page(name: str, language: Language, **parts: Any) -> str:  # Any: whatever the template names
    """Return the page of a template in this folder: style and script are in it, it opens nothing else."""
    script = read_text(FOLDER / "report.js") + chart_script()
    return _template(name).render(
        language=language,
        **parts,
        style=Markup(read_text(FOLDER / "report.css")),
        script=Markup(script),
        # the one script that may run, whatever else a file of the run may hold
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=version("glmtune"),
    )


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["both"] = in_both
    environment.globals["t"] = lambda key, **values: in_both(text(key, **values))
    return environment.get_template(name)


def in_both(words: Text) -> Markup:
    """Return a text in both languages, of which the page shows one; once if they are the same."""
    if words.en == words.zh:
        return Markup("{}").format(words.en)
    return Markup('<span class="en" lang="en">{}</span><span class="zh" lang="zh">{}</span>').format(*words)


def _side_by_side(runs: Sequence[RecordedRun], comparison: Comparison) -> SideBySide:
    names = [run.name for run in comparison.runs]
    return SideBySide(
        names=names,
        warnings=comparison.warnings,
        charts=list(_charts(runs, names)),
        figures=[
            (name, [value or NOTHING for value in values]) for name, values in _figures(comparison.runs)
        ],
        differences=[
            (name, [shown_value(value) for value in values])
            for name, values in comparison.differences.items()
        ],
        samples=[
            (sample.prompt, [NOTHING if answer is None else answer for answer in sample.answers])
            for sample in comparison.samples
        ],
    )


def _charts(runs: Sequence[RecordedRun], names: Sequence[str]) -> Iterator[Chart]:
    """Yield charts with a line for each run; long ones are smoothed."""

    def lines(curves: Sequence[Curve], *, has_points: bool = False) -> list[Series]:
        return [
            Series(name=Text.of(name), curve=smoothed(curve), colour=number, has_points=has_points)
            for number, (name, curve) in enumerate(zip(names, curves, strict=True))
        ]

    charts = [
        loss_chart(text("evaluation_losses"), lines([run.evaluation for run in runs], has_points=True)),
        loss_chart(text("training_losses"), lines([run.training for run in runs])),
    ]
    for each in FIGURES:
        curves = lines([read_curve(run.metrics, each.key) for run in runs])
        charts.append(curve_chart(each.title, each.unit, curves, from_zero=each.from_zero))
    yield from filter(None, charts)


def _figures(runs: Sequence[RunFigures]) -> Iterator[tuple[Text, list[str | None]]]:
    """Yield the name of each figure and its value for every run."""
    yield text("method"), [run.method for run in runs]
    for name, files in (
        ("trained_on", [run.trained_on for run in runs]),
        ("evaluated_on", [run.evaluated_on for run in runs]),
    ):
        if len(set(files)) > 1:
            yield text(name), [*files]
    numbers = [run.trainable_parameters for run in runs]
    yield text("trained"), [None if number is None else f"{number:,}" for number in numbers]
    yield text("size"), [None if run.size_bytes is None else in_bytes(run.size_bytes) for run in runs]
    yield text("steps"), [f"{run.steps:,}" for run in runs]
    yield text("training_time"), [in_time(run.train_s) for run in runs]
    yield text("tokens_s"), [None if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}" for run in runs]
    peaks = [run.peak_memory_gib for run in runs]
    yield text("peak_memory"), [None if peak is None else in_bytes(peak * 2**30) for peak in peaks]
    yield (
        text("best_loss"),
        [
            None if run.best_eval_loss is None else f"{run.best_eval_loss:.4f} ({run.best_step:,})"
            for run in runs
        ],
    )
    if any(run.verdict for run in runs):
        kls = [run.general_kl for run in runs]
        yield (
            text("verdict"),
            [None if kl is None else f"{run.verdict} ({kl:.3g})" for run, kl in zip(runs, kls, strict=True)],
        )
    kinds = {scores.key: scores for run in runs for scores in run.scores}
    for key, example in kinds.items():
        of_runs = [next((each.values for each in run.scores if each.key == key), {}) for run in runs]
        for name in example.values:
            scores = [f"{each[name]:.2f}" if name in each else None for each in of_runs]
            yield Text.of(f"{Path(example.data).stem}: {name}"), scores
