"""Pictures of runs, drawn from their metrics.jsonl."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.report.curves import SMOOTH_FROM_POINTS, Curve, finite, read_curve, smooth
from glmtune.report.fonts import find_families
from glmtune.runs import replacing

WIDTH_INCHES, HEIGHT_INCHES, DPI = 8.0, 4.5, 150
# Told apart by colour-blind readers too. Source: https://jfly.uni-koeln.de/color/ (Okabe and Ito)
TRAINING_COLOUR, EVALUATION_COLOUR, BEST_COLOUR = "#0072B2", "#D55E00", "#009E73"
RUN_COLOURS = (TRAINING_COLOUR, EVALUATION_COLOUR, BEST_COLOUR, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RUN_MARKERS = "osD^vPX*"
"""Colours and markers have other periods: of 56 runs no two look the same."""
MARKED_POINTS = 60
"""Up to so many evaluations each has its marker on the line."""
UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))
LEAST_UNITS = 3
"""A time axis has the longest unit of which it spans so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """One run in a picture of several."""

    label: str
    training: Curve
    evaluation: Curve
    seconds: Curve
    """Training time up to each step."""


def plot_loss(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw training and evaluation loss over the steps as a PNG file, replacing it whole or not at all.

    `metrics` are the lines of metrics.jsonl: `step` with `loss` (training) or `eval_loss`. Losses that are
    no finite number are marked at the lower edge. Raises `OutputError` where the file cannot be written.
    """
    picture = _draw(read_curve(metrics, "loss"), read_curve(metrics, "eval_loss"))
    with replacing(path) as partial:
        partial.write_bytes(picture)


def _draw(training: Curve, evaluation: Curve) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.set_ylabel("loss per target token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _style(axes)
    _draw_training(axes, training)
    _draw_evaluation(axes, evaluation)
    _draw_not_finite(axes, [step for curve in (training, evaluation) for step, y in curve.items() if y != y])
    steps = {*training, *evaluation}
    if len(steps) == 1:
        axes.set_xlim(min(steps) - 1, max(steps) + 1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", edgecolor="none", framealpha=0.8)
    else:
        axes.text(0.5, 0.5, "no loss yet", transform=axes.transAxes, ha="center", va="center", color="0.5")
    return _png(figure)


def _style(axes: Any) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def _draw_training(axes: Any, curve: Curve) -> None:
    """Draw every point; beyond some tens of them faintly, under their running mean."""
    steps, losses = list(curve), list(curve.values())
    if all(loss != loss for loss in losses):
        return
    colour = TRAINING_COLOUR
    if len(losses) < SMOOTH_FROM_POINTS:
        axes.plot(steps, losses, color=colour, linewidth=1.6, marker="o", markersize=4, label="training")
        return
    axes.plot(steps, losses, color=colour, linewidth=0.8, alpha=0.35, label="training")
    axes.plot(steps, smooth(losses), color=colour, linewidth=1.8, label="training, smoothed")


def _draw_evaluation(axes: Any, curve: Curve) -> None:
    known = finite(curve)
    if not known:
        return
    marker = "o" if len(known) <= MARKED_POINTS else ""
    axes.plot(
        list(curve),
        list(curve.values()),
        color=EVALUATION_COLOUR,
        linewidth=1.6,
        marker=marker,
        markersize=5,
        label="evaluation",
        zorder=3,
    )
    best = min(known, key=lambda step: known[step])
    axes.plot(
        [best],
        [known[best]],
        linestyle="none",
        marker="*",
        markersize=15,
        color=BEST_COLOUR,
        markeredgecolor="white",
        label=f"best evaluation: {known[best]:.4g} at step {best}",
        zorder=4,
    )


def _draw_not_finite(axes: Any, steps: Sequence[int]) -> None:
    if steps:
        axes.plot(
            steps,
            [0.02] * len(steps),
            linestyle="none",
            marker="x",
            markersize=6,
            color="#CC0000",
            transform=axes.get_xaxis_transform(),
            label=f"not finite ({len(steps)})",
        )


def plot_comparison(runs: Sequence[Curves], path: Path) -> None:
    """Draw the losses of runs over steps and over training time as a PNG file.

    Raises `OutputError` where the file cannot be written.
    """
    picture = _png(draw_comparison(runs))
    with replacing(path) as partial:
        partial.write_bytes(picture)


def draw_comparison(runs: Sequence[Curves]) -> Any:
    """The figure: two panels, each run in its colour, training losses as lines, evaluations as points."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(1.5 * WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    by_step.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_step.set_ylabel("loss per target token")
    by_step.set_xlabel("step")
    unit, unit_s = _unit(max(run.seconds[max(run.seconds)] for run in runs))
    by_time.set_xlabel(f"training time ({unit})")
    by_time.yaxis.set_tick_params(labelleft=True)
    for axes in (by_step, by_time):
        _style(axes)
    for number, run in enumerate(runs):
        times = {step: second / unit_s for step, second in run.seconds.items()}
        _draw_run(by_step, run, {step: step for step in times}, number)
        _draw_run(by_time, run, times, number)
    _add_legend(figure, runs, by_step)
    return figure


def _unit(seconds: float) -> tuple[str, float]:
    return next((unit for unit in UNITS if seconds >= LEAST_UNITS * unit[1]), UNITS[-1])


def _draw_run(axes: Any, run: Curves, places: Mapping[int, float], number: int) -> None:
    """Draw one run with each step at its place: the losses faintly under their mean, the evaluations."""
    colour, marker = RUN_COLOURS[number % len(RUN_COLOURS)], RUN_MARKERS[number % len(RUN_MARKERS)]
    x, losses = [places[step] for step in run.training], list(run.training.values())
    is_long = len(losses) >= SMOOTH_FROM_POINTS
    axes.plot(x, losses, color=colour, linewidth=0.8, alpha=0.3 if is_long else 1)
    if is_long:
        axes.plot(x, smooth(losses), color=colour, linewidth=1.8)
    axes.plot(
        [places[step] for step in run.evaluation],
        list(run.evaluation.values()),
        linestyle="none",
        color=colour,
        marker=marker,
        markersize=6,
        markeredgecolor="white",
        zorder=3,
    )


def _add_legend(figure: Any, runs: Sequence[Curves], axes: Any) -> None:
    from matplotlib.lines import Line2D

    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    handles = [Line2D([], [], color=p.get_color(), marker=p.get_marker(), linewidth=1.8) for p in points]
    legend = figure.legend(
        handles,
        ["" for _ in runs],
        loc="outside lower center",
        ncols=min(len(runs), 3),
        frameon=False,
        title="lines: training loss; points: evaluation loss",
    )
    families = find_families([run.label for run in runs])
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)  # a name may hold dollar signs
        text.set_text(run.label)  # not before: a label that begins with _ would be left out
        if families:
            text.set_fontfamily(families)
