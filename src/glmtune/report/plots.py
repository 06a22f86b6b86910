"""Pictures of losses, drawn from a run's metrics.jsonl."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.report.canvas import HEIGHT_INCHES, WIDTH_INCHES, add_head, new_figure, save, scale_losses, style
from glmtune.report.curves import SMOOTH_FROM_POINTS, Curve, candidates, finite, lowest, read_curve, smooth

# Told apart by colour-blind readers too. Source: https://jfly.uni-koeln.de/color/ (Okabe and Ito)
TRAINING_COLOUR, EVALUATION_COLOUR, BEST_COLOUR = "#0072B2", "#D55E00", "#009E73"
RUN_COLOURS = (TRAINING_COLOUR, EVALUATION_COLOUR, BEST_COLOUR, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RUN_MARKERS = "osD^v<>p"
"""Colours and markers have other periods: of 56 runs no two look the same."""
RUN_DASHES, MARKER_SIZES = ("-", (0, (4, 2)), (0, (1.5, 3))), (10.0, 7.0, 4.5)
"""Of two equal curves the later leaves gaps, and its points stand within the earlier one's."""
BEST_GROWTH = 2
"""A run's star is so many times as large as its markers."""
STAR: dict[str, Any] = {
    "linestyle": "none",
    "marker": "*",
    "markeredgecolor": "white",
    "markeredgewidth": 0.5,
}
FAINT: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.35}
MARKED_POINTS = 60
"""Up to so many evaluations each has its marker on the line."""
UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))
LEAST_UNITS = 3
"""A time axis has the longest unit of which it spans so many."""
NAMES_IN_TITLE = 90
"""Letters of the runs' names; more of them stand in the legend alone."""
FEW_RUNS = 4
"""In a picture of more, a long run's losses are drawn as their mean alone."""
INCHES_PER_RUN = 0.1
"""What the picture grows by, so that a long legend leaves the curves their room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """One run in a picture of several."""

    label: str
    training: Curve
    evaluation: Curve
    seconds: Curve
    """Training time up to each step."""
    best: int | None = None
    """The step of the run's best evaluation."""


def plot_loss(metrics: Sequence[Mapping[str, Any]], path: Path, *, title: str, subtitle: str = "") -> None:
    """Draw training and evaluation loss over the steps as a PNG file, replacing it whole or not at all.

    `metrics` are the lines of metrics.jsonl: `step` with `loss` (training) or `eval_loss`. Losses that are
    no finite number are marked at the lower edge. Raises `OutputError` where the file cannot be written.
    """
    save(draw_loss(metrics, title=title, subtitle=subtitle), path)


def draw_loss(metrics: Sequence[Mapping[str, Any]], *, title: str, subtitle: str = "") -> Any:
    """The figure of `plot_loss`: the star is the evaluation that the run calls its best so far."""
    training, evaluation = (read_curve(metrics, key) for key in ("loss", "eval_loss"))
    figure = new_figure()
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    style(axes)
    scale_losses(axes, [*training.values(), *evaluation.values()])
    _draw_training(axes, training)
    _draw_evaluation(axes, evaluation, lowest(candidates(metrics)))
    _draw_not_finite(axes, [step for curve in (training, evaluation) for step, y in curve.items() if y != y])
    _show_steps(axes, {*training, *evaluation})
    handles = [line for line in axes.lines if not line.get_label().startswith("_")]
    if not handles:
        axes.text(0.5, 0.5, "no loss yet", transform=axes.transAxes, ha="center", va="center", color="0.5")
    add_head(figure, title, subtitle=subtitle, handles=handles)
    return figure


def _draw_training(axes: Any, curve: Curve) -> None:
    """Draw every point; beyond some tens of them faintly, under their running mean."""
    steps, losses = list(curve), list(curve.values())
    if all(loss != loss for loss in losses):
        return
    colour = TRAINING_COLOUR
    if len(losses) < SMOOTH_FROM_POINTS:
        axes.plot(steps, losses, color=colour, linewidth=1.6, marker="o", markersize=4, label="training")
        return
    axes.plot(steps, losses, color=colour, label="training, each step", **FAINT)
    axes.plot(steps, smooth(losses), color=colour, linewidth=1.8, label="training, smoothed")


def _draw_evaluation(axes: Any, curve: Curve, best: int | None) -> None:
    known = finite(curve)
    if not known:
        return
    axes.plot(
        list(curve),
        list(curve.values()),
        color=EVALUATION_COLOUR,
        linewidth=1.6,
        marker="o" if len(known) <= MARKED_POINTS else "",
        markersize=5,
        label="evaluation",
        zorder=3,
    )
    if best is not None:
        axes.plot(
            [best],
            [known[best]],
            markersize=15,
            color=BEST_COLOUR,
            label=f"best evaluation: {known[best]:.4g} at step {best:,}",
            zorder=4,
            **STAR,
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


def _show_steps(axes: Any, steps: Iterable[int]) -> None:
    """Whole numbers along the axis of the steps, and some room where there is but one."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if len(known := set(steps)) == 1:
        axes.set_xlim(min(known) - 1, max(known) + 1)


def plot_comparison(runs: Sequence[Curves], path: Path, *, caveats: Sequence[str] = ()) -> None:
    """Draw the losses of runs over steps and over training time as a PNG file.

    `caveats` say why curves cannot be compared. Raises `OutputError` where the file cannot be written.
    """
    save(draw_comparison(runs, caveats=caveats), path)


def draw_comparison(runs: Sequence[Curves], *, caveats: Sequence[str] = ()) -> Any:
    """The figure: two panels, each run in its colour, training losses as lines, evaluations as points,
    a star at the best.
    """
    figure = new_figure(width=1.5 * WIDTH_INCHES, height=HEIGHT_INCHES + INCHES_PER_RUN * len(runs))
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    by_step.set_xlabel("step")
    unit, unit_s = _unit(max(run.seconds[max(run.seconds)] for run in runs))
    by_time.set_xlabel(f"training time ({unit})")
    by_time.yaxis.set_tick_params(labelleft=True)
    for axes in (by_step, by_time):
        style(axes)
    drawn = [curve for run in runs for curve in (run.training, run.evaluation)]
    scale_losses(by_step, [loss for curve in drawn for loss in curve.values()])
    for number, run in enumerate(runs):
        times = {step: second / unit_s for step, second in run.seconds.items()}
        for axes, places in ((by_step, {step: step for step in times}), (by_time, times)):
            _draw_run(axes, run, places, _look(number), is_crowded=len(runs) > FEW_RUNS)
    _show_steps(by_step, {step for run in runs for step in run.seconds})
    names = ", ".join(run.label for run in runs)
    title = names if len(names) <= NAMES_IN_TITLE else f"{len(runs)} runs"
    handles = [*_examples(runs), *(_handle(run, number) for number, run in enumerate(runs))]
    add_head(figure, title, caveats=caveats, handles=handles)
    return figure


def _unit(seconds: float) -> tuple[str, float]:
    return next((unit for unit in UNITS if seconds >= LEAST_UNITS * unit[1]), UNITS[-1])


def _look(number: int) -> dict[str, Any]:
    """Colour, dashes and open marker of the run of that number."""
    return {
        "color": RUN_COLOURS[number % len(RUN_COLOURS)],
        "linestyle": RUN_DASHES[number % len(RUN_DASHES)],
        "marker": RUN_MARKERS[number % len(RUN_MARKERS)],
        "markersize": MARKER_SIZES[number % len(MARKER_SIZES)],
        "markerfacecolor": "none",
    }


def _is_long(run: Curves) -> bool:
    return len(run.training) >= SMOOTH_FROM_POINTS


def _draw_run(
    axes: Any, run: Curves, places: Mapping[int, float], look: Mapping[str, Any], *, is_crowded: bool
) -> None:
    """Draw one run with each step at its place: the losses faintly under their mean, the evaluations."""
    x, losses = [places[step] for step in run.training], list(run.training.values())
    line = {"color": look["color"], "linestyle": look["linestyle"]}
    if not _is_long(run):
        axes.plot(x, losses, linewidth=1.8, **line)
    elif not is_crowded:
        axes.plot(x, losses, color=look["color"], **FAINT)
    if _is_long(run):
        axes.plot(x, smooth(losses), linewidth=1.8, **line)
    evaluated = [places[step] for step in run.evaluation]
    axes.plot(evaluated, list(run.evaluation.values()), linewidth=0.9, zorder=3, **look)
    if run.best is not None:
        star = STAR | {"color": look["color"], "markersize": look["markersize"] * BEST_GROWTH}
        axes.plot([places[run.best]], [run.evaluation[run.best]], zorder=4, **star)


def _handle(run: Curves, number: int) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linewidth=1.8, label=run.label, **_look(number))


def _examples(runs: Sequence[Curves]) -> list[Any]:
    """Each kind of line and point that is drawn, in no run's colour."""
    from matplotlib.lines import Line2D

    looks: dict[str, dict[str, Any]] = {"training": {"linewidth": 1.8}}
    if any(map(_is_long, runs)):
        pale = {"training, each step": FAINT} if len(runs) <= FEW_RUNS else {}
        looks = pale | {"training, smoothed": {"linewidth": 1.8}}
    looks["evaluation"] = {"linewidth": 0.9, "marker": "o", "markerfacecolor": "none"}
    if any(run.best is not None for run in runs):
        looks["best evaluation"] = STAR | {"markersize": 12}
    return [Line2D([], [], color="0.45", label=label, **look) for label, look in looks.items()]
