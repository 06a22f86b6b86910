"""Draw the memory of a run: by part, predicted and measured, and over the steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.reports.canvas import SMALL_POINTS, add_head, new_figure, save, style
from glmtune.reports.curves import read_curve
from glmtune.reports.plots import show_steps

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind readers can tell them apart too. Source: https://jfly.uni-koeln.de/color/ (Okabe and Ito)
COLOURS = {
    **dict.fromkeys(("weights", "codes"), "#0072B2"),
    "scales": "#56B4E9",
    "not quantised": "#99B7CC",
    "gathered": "#99B7CC",
    "adapter": "#009E73",
    "prefix": "#009E73",
    "gradients": "#F0E442",
    "optimizer": "#E69F00",
    "activations": "#D55E00",
    "logits": "#CC79A7",
    "KV cache": "#CC79A7",
    "process": "#BBBBBB",
}
"""Colours of the parts."""
DARK = ("weights", "codes")
LIMIT_COLOUR, CURVE_COLOUR = "#B00020", "#000000"
LEAST_LABELLED = 0.06
"""Least share of the axis' height of a part whose size is written into it."""
FAR = 2
"""A limit above FAR times all that is drawn is told in words: to scale, the rest would be flat."""


def plot_memory(
    memory: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    title: str,
    subtitle: str = "",
) -> None:
    """Draw the memory of a run as a PNG file, written atomically.

    `memory`: the contents of memory.json, `metrics`: the lines of metrics.jsonl. Raises `OutputError` if the
    file cannot be written.
    """
    save(draw_memory(memory, metrics, title=title, subtitle=subtitle), path)


def draw_memory(
    memory: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], *, title: str, subtitle: str = ""
) -> "Figure":
    """Draw the figure of `plot_memory`: a bar for each of predicted and measured, beside a curve by step."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    # the process lowest, which is alike in both
    columns = {name: {"process": 0, **parts} for name in ("predicted", "measured") if (parts := memory[name])}
    for parts in columns.values():
        parts.pop("bytes", None)
    # the curve is of the process on a CPU; on a GPU of its tensors, which stand on CUDA's context
    below = memory["measured"].get("process", 0) if memory["device"] == "cuda" else 0
    curve = {step: gib * 2**30 + below for step, gib in read_curve(metrics, "memory_gib").items()}
    drawn = max([*(sum(parts.values()) for parts in columns.values()), *curve.values()])
    unit, size = _unit_of(drawn)
    figure = new_figure()
    by_part, by_step = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.4))
    for axes in (by_part, by_step):
        style(axes)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    by_part.set_ylabel(unit)
    limit, is_far = memory["limit"], memory["limit"] > FAR * drawn
    by_part.set_ylim(0, 1.12 * (drawn if is_far else max(drawn, limit)) / size)
    _draw_parts(by_part, columns, size)
    names = dict.fromkeys(name for parts in columns.values() for name in parts)
    handles: list[Artist] = [Patch(color=COLOURS.get(name, "0.5"), label=name) for name in names]
    by_step.set_xlabel("step")
    if curve:
        by_step.plot(
            list(curve),
            [value / size for value in curve.values()],
            color=CURVE_COLOUR,
            linewidth=1.4,
            marker="o" if len(curve) <= 40 else "",
            markersize=4,
            label="highest of each step",
        )
        show_steps(by_step, curve)
        handles += by_step.lines[-1:]
    else:
        place = {"transform": by_step.transAxes, "ha": "center", "va": "center"}
        by_step.text(0.5, 0.5, "no step yet", color="0.5", **place)
        by_step.set_xticks([])
    limit_unit, limit_size = _unit_of(limit)
    words = f"available: {limit / limit_size:.3g} {limit_unit}"
    if is_far:  # below the curve, which is high
        look = {"fontsize": SMALL_POINTS, "color": LIMIT_COLOUR}
        by_step.text(0.99, 0.03, words, transform=by_step.transAxes, ha="right", va="bottom", **look)
    else:
        for axes in (by_part, by_step):
            axes.axhline(limit / size, color=LIMIT_COLOUR, linewidth=1.4, linestyle=(0, (4, 2)), label=words)
        handles += by_step.lines[-1:]
    add_head(figure, f"{title}: memory", subtitle=subtitle, handles=handles)
    return figure


def _unit_of(num_bytes: float) -> tuple[str, int]:
    """Return the unit that fits a size, and its bytes."""
    return ("GiB", 2**30) if num_bytes >= 2**30 else ("MiB", 2**20)


def _draw_parts(axes: "Axes", columns: Mapping[str, Mapping[str, int]], size: int) -> None:
    """Draw a stack of parts for each column, with the sum above it."""
    top = axes.get_ylim()[1]
    for x, parts in enumerate(columns.values()):
        height = 0.0
        for name, value in parts.items():
            share = value / size
            axes.bar(x, share, bottom=height, color=COLOURS.get(name, "0.5"), width=0.62)
            if share > LEAST_LABELLED * top:
                shown = axes.text(x, height + share / 2, f"{share:.3g}", ha="center", va="center")
                shown.set(fontsize=SMALL_POINTS, color="white" if name in DARK else "black")
            height += share
        axes.text(x, height, f"{height:.3g}", ha="center", va="bottom", fontweight="bold")
    axes.set_xticks(range(len(columns)), list(columns))
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
