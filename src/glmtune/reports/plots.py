"""Draw the losses of a run, or of several runs, from their metrics.jsonl."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.reports.canvas import HEIGHT_INCHES, add_head, new_figure, save, scale_losses, style, write
from glmtune.reports.curves import (
    SMOOTH_FROM_POINTS,
    Curve,
    Metrics,
    candidates,
    finite,
    lowest,
    read_curve,
    read_source_curves,
    smooth,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind readers can tell them apart too. Source: https://jfly.uni-koeln.de/color/ (Okabe and Ito)
TRAINING_COLOUR, EVALUATION_COLOUR, BEST_COLOUR = "#0072B2", "#D55E00", "#009E73"
RUN_COLOURS = (TRAINING_COLOUR, EVALUATION_COLOUR, BEST_COLOUR, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SOURCE_COLOURS = RUN_COLOURS[3:]
DIVERGENCE, DIVERGENCE_COLOUR = "divergence from the base", "#666666"
RUN_MARKERS = "osD^v<>p"
"""7 colours and 8 markers in turn: no two of 56 runs look the same."""
RUN_DASHES, MARKER_SIZES = ("-", (0, (4, 2)), (0, (1.5, 3))), (10.0, 7.0, 4.5)
"""Dashes and smaller markers leave an equal curve of an earlier run visible below."""
BEST_GROWTH = 2
"""Size of a run's star, in sizes of its markers."""
# the best evaluation
STAR: dict[str, Any] = {
    "linestyle": "none",
    "marker": "*",
    "markeredgecolor": "white",
    "markeredgewidth": 0.5,
}
# losses of each step, below their smoothed curve
FAINT: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.35}
MARKED_POINTS = 60
"""Number of evaluations up to which each has a marker."""
UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))
"""Units of a time axis with their seconds, the longest first."""
LEAST_UNITS = 3
"""A time axis gets the longest unit of which it spans at least so many."""
NAMES_IN_TITLE = 90
"""Letters of run names that fit a title; the legend alone has longer ones."""
FEW_RUNS = 4
"""Number of runs above which long runs are drawn smoothed only."""
PANEL_INCHES = 6.0
"""Width of each panel in a picture of several runs."""
INCHES_PER_RUN = 0.1
"""Height added for each run, so that a long legend leaves the curves their room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """The curves of one run in a picture of several."""

    label: str
    training: Curve
    evaluation: Curve
    seconds: Curve
    """Training time in seconds up to each step."""
    best: int | None = None
    """The step of the run's best evaluation."""
    turns: Curve = field(default_factory=dict)
    """A score by the turn of the conversation, 0 to 100."""


def plot_loss(metrics: Sequence[Mapping[str, Any]], path: Path, *, title: str, subtitle: str = "") -> None:
    """Draw training and evaluation loss over the steps as a PNG file, written atomically.

    `metrics` are the lines of metrics.jsonl: `step` with `loss` (training) or `eval_loss`. Losses that are
    not finite are marked at the lower edge. Raises `OutputError` if the file cannot be written.
    """
    save(draw_loss(metrics, title=title, subtitle=subtitle), path)


def draw_loss(metrics: Sequence[Mapping[str, Any]], *, title: str, subtitle: str = "") -> "Figure":
    """Draw the figure of `plot_loss`, with a star at the best evaluation so far."""
    training, evaluation = (read_curve(metrics, key) for key in ("loss", "eval_loss"))
    figure = new_figure()
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    style(axes)
    scale_losses(axes, [*training.values(), *evaluation.values()])
    _draw_training(axes, training)
    _draw_sources(axes, metrics)
    _draw_divergence(axes, read_curve(metrics, "kl"))
    _draw_evaluation(axes, evaluation, lowest(candidates(metrics)))
    gaps = [step for curve in (training, evaluation) for step, loss in curve.items() if loss != loss]
    if gaps:
        axes.plot(
            gaps,
            [0.02] * len(gaps),
            linestyle="none",
            marker="x",
            markersize=6,
            color="#CC0000",
            # x in data, y in parts of the axes' height: at the lower edge whatever the losses
            transform=axes.get_xaxis_transform(),
            label=f"not finite ({len(gaps)})",
        )
    show_steps(axes, {*training, *evaluation})
    # matplotlib begins the label of a line without one with _
    lines = [line for each in figure.axes for line in each.lines]
    handles = [line for line in lines if not str(line.get_label()).startswith("_")]
    if not handles:
        axes.text(0.5, 0.5, "no loss yet", transform=axes.transAxes, ha="center", va="center", color="0.5")
    add_head(figure, title, subtitle=subtitle, handles=handles)
    return figure


def _draw_training(axes: "Axes", curve: Curve) -> None:
    """Draw every point; many of them faintly, below their smoothed curve."""
    steps, losses = list(curve), list(curve.values())
    if all(loss != loss for loss in losses):
        return
    colour = TRAINING_COLOUR
    if len(losses) < SMOOTH_FROM_POINTS:
        axes.plot(steps, losses, color=colour, linewidth=1.6, marker="o", markersize=4, label="training")
        return
    axes.plot(steps, losses, color=colour, label="training, each step", **FAINT)
    axes.plot(steps, smooth(losses), color=colour, linewidth=1.8, label="training, smoothed")


def _draw_sources(axes: "Axes", metrics: Metrics) -> None:
    """Draw the training losses of a mixture's sources, smoothed where there are many."""
    for number, (name, curve) in enumerate(read_source_curves(metrics).items()):
        losses = [*curve.values()]
        axes.plot(
            list(curve),
            losses if len(losses) < SMOOTH_FROM_POINTS else smooth(losses),
            color=SOURCE_COLOURS[number % len(SOURCE_COLOURS)],
            linewidth=1.2,
            linestyle=(0, (4, 2)),
            label=f"training, {Path(name).name}",
        )


def _draw_divergence(axes: "Axes", curve: Curve) -> None:
    """Draw the divergence from the base that `retain.kl` weighs, on an axis of its own: it is far smaller."""
    values = [*curve.values()]
    if not values:
        return
    own = axes.twinx()
    own.spines[["top", "left"]].set_visible(False)
    own.set_ylabel(DIVERGENCE)
    shown = values if len(values) < SMOOTH_FROM_POINTS else smooth(values)
    own.plot(
        list(curve), shown, color=DIVERGENCE_COLOUR, linewidth=1.2, linestyle=(0, (1.5, 2)), label=DIVERGENCE
    )
    own.set_ylim(bottom=0)


def _draw_evaluation(axes: "Axes", curve: Curve, best: int | None) -> None:
    """Draw the evaluations, and a star at the step `best`."""
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


def show_steps(axes: "Axes", steps: Iterable[int]) -> None:
    """Label the axis of the steps with whole numbers, with room around a single step."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if len(known := set(steps)) == 1:
        axes.set_xlim(min(known) - 1, max(known) + 1)


def plot_comparison(
    runs: Sequence[Curves], path: Path, *, caveats: Sequence[str] = (), turn_score: str = ""
) -> None:
    """Draw the losses of several runs over steps and over training time, and scores by turn, as a PNG file.

    `caveats` say why curves cannot be compared; `turn_score` names the scores in `Curves.turns`. Raises
    `OutputError` if the file cannot be written.
    """
    save(draw_comparison(runs, caveats=caveats, turn_score=turn_score), path)


def draw_comparison(runs: Sequence[Curves], *, caveats: Sequence[str] = (), turn_score: str = "") -> "Figure":
    """Draw the figure of `plot_comparison`: a panel by step, one by time and, of scores, one by turn.

    Each run has its colour; training losses are lines, evaluations points, the best evaluation a star.
    """
    from matplotlib.lines import Line2D

    panels = 3 if any(run.turns for run in runs) else 2
    figure = new_figure(width=panels * PANEL_INCHES, height=HEIGHT_INCHES + INCHES_PER_RUN * len(runs))
    by_step, by_time, *by_turn = figure.subplots(1, panels)
    by_time.sharey(by_step)
    by_step.set_xlabel("step")
    longest_s = max(run.seconds[max(run.seconds)] for run in runs)
    unit, unit_s = next((unit for unit in UNITS if longest_s >= LEAST_UNITS * unit[1]), UNITS[-1])
    by_time.set_xlabel(f"training time ({unit})")
    by_time.yaxis.set_tick_params(labelleft=True)  # sharey takes them away
    for axes in (by_step, by_time):
        style(axes)
    curves = [curve for run in runs for curve in (run.training, run.evaluation)]
    scale_losses(by_step, [loss for curve in curves for loss in curve.values()])
    for number, run in enumerate(runs):
        times = {step: second / unit_s for step, second in run.seconds.items()}
        for axes, xs in ((by_step, {step: step for step in times}), (by_time, times)):
            _draw_run(axes, run, xs, _look(number), is_crowded=len(runs) > FEW_RUNS)
    show_steps(by_step, {step for run in runs for step in run.seconds})
    for axes in by_turn:
        axes.set_xlabel("turn")
        write(axes.yaxis.label, turn_score)  # it has a file's name in it
        axes.set_ylim(0, 105)  # room for a marker at 100
        style(axes)
        for number, run in enumerate(runs):
            axes.plot(list(run.turns), list(run.turns.values()), linewidth=1.8, **_look(number))
        show_steps(axes, {turn for run in runs for turn in run.turns})
    names = ", ".join(run.label for run in runs)
    title = names if len(names) <= NAMES_IN_TITLE else f"{len(runs)} runs"
    named = [
        Line2D([], [], linewidth=1.8, label=run.label, **_look(number)) for number, run in enumerate(runs)
    ]
    handles = [*_legend_of_kinds(runs), *named]
    add_head(figure, title, caveats=caveats, handles=handles)
    return figure


def _look(number: int) -> dict[str, Any]:
    """Return the colour, dashes and open marker of a run, by its number from 0."""
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
    axes: "Axes", run: Curves, xs: Mapping[int, float], look: Mapping[str, Any], *, is_crowded: bool
) -> None:
    """Draw one run, each step at its place in `xs`; many losses faintly, below their smoothed curve."""
    x, losses = [xs[step] for step in run.training], list(run.training.values())
    line = {"color": look["color"], "linestyle": look["linestyle"]}
    if not _is_long(run):
        axes.plot(x, losses, linewidth=1.8, **line)
    elif not is_crowded:
        axes.plot(x, losses, color=look["color"], **FAINT)
    if _is_long(run):
        axes.plot(x, smooth(losses), linewidth=1.8, **line)
    evaluated = [xs[step] for step in run.evaluation]
    axes.plot(evaluated, list(run.evaluation.values()), linewidth=0.9, zorder=3, **look)
    if run.best is not None:
        star = STAR | {"color": look["color"], "markersize": look["markersize"] * BEST_GROWTH}
        axes.plot([xs[run.best]], [run.evaluation[run.best]], zorder=4, **star)


def _legend_of_kinds(runs: Sequence[Curves]) -> list["Artist"]:
    """Make a grey legend entry for each kind of line and point in the picture."""
    from matplotlib.lines import Line2D

    looks: dict[str, dict[str, Any]] = {"training": {"linewidth": 1.8}}
    if any(map(_is_long, runs)):
        faint = {"training, each step": FAINT} if len(runs) <= FEW_RUNS else {}
        looks = faint | {"training, smoothed": {"linewidth": 1.8}}
    looks["evaluation"] = {"linewidth": 0.9, "marker": "o", "markerfacecolor": "none"}
    if any(run.best is not None for run in runs):
        looks["best evaluation"] = STAR | {"markersize": 12}
    return [Line2D([], [], color="0.45", label=label, **look) for label, look in looks.items()]
