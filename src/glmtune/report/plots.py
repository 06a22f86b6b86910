"""Pictures of a run, drawn from its metrics.jsonl."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from glmtune.runs import replacing

WIDTH_INCHES, HEIGHT_INCHES, DPI = 8.0, 4.5, 150
# Told apart by colour-blind readers too. Source: https://jfly.uni-koeln.de/color/ (Okabe and Ito)
TRAINING_COLOUR, EVALUATION_COLOUR, BEST_COLOUR = "#0072B2", "#D55E00", "#009E73"
SMOOTH_FROM_POINTS = 40
SMOOTH_WINDOWS = 25
"""A smoothed curve averages over one part in so many of the steps."""
MARKED_POINTS = 60
"""Up to so many evaluations each has its marker on the line."""

Curve = dict[int, float]


def plot_loss(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw training and evaluation loss over the steps as a PNG file, replacing it whole or not at all.

    `metrics` are the lines of metrics.jsonl: `step` with `loss` (training) or `eval_loss`. Losses that are
    no finite number are marked at the lower edge. Raises `OutputError` where the file cannot be written.
    """
    picture = _draw(_curve(metrics, "loss"), _curve(metrics, "eval_loss"))
    with replacing(path) as partial:
        partial.write_bytes(picture)


def _curve(metrics: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """Losses by step in order; of a step that was run again after a resume, the last."""
    points = {int(line["step"]): line[key] for line in metrics if key in line}
    return {step: _number(points[step]) for step in sorted(points)}


def _number(loss: Any) -> float:
    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else math.nan


def _draw(training: Curve, evaluation: Curve) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.set_ylabel("loss per target token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
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
    axes.plot(steps, _running_mean(losses), color=colour, linewidth=1.8, label="training, smoothed")


def _draw_evaluation(axes: Any, curve: Curve) -> None:
    finite = {step: loss for step, loss in curve.items() if loss == loss}
    if not finite:
        return
    marker = "o" if len(finite) <= MARKED_POINTS else ""
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
    best = min(finite, key=lambda step: finite[step])
    axes.plot(
        [best],
        [finite[best]],
        linestyle="none",
        marker="*",
        markersize=15,
        color=BEST_COLOUR,
        markeredgecolor="white",
        label=f"best evaluation: {finite[best]:.4g} at step {best}",
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


def _running_mean(losses: Sequence[float]) -> list[float]:
    """Means over a centred window, of the finite losses in it; a gap stays a gap."""
    half = max(len(losses) // SMOOTH_WINDOWS // 2, 2)
    sums = [0.0, *accumulate(0.0 if loss != loss else loss for loss in losses)]
    counts = [0, *accumulate(int(loss == loss) for loss in losses)]
    means = []
    for index, loss in enumerate(losses):
        first, end = max(index - half, 0), min(index + half + 1, len(losses))
        is_gap = loss != loss
        means.append(math.nan if is_gap else (sums[end] - sums[first]) / (counts[end] - counts[first]))
    return means
