"""Draw the ranks of AdaLoRA's targets over the steps of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.reports.canvas import HEIGHT_INCHES, add_head, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_INCHES = 0.16
"""Height of a target's row in a picture of many."""


def plot_ranks(lines: Sequence[Mapping[str, Any]], last_step: int, path: Path, *, title: str) -> None:
    """Draw the ranks up to `last_step` as a PNG file, written atomically.

    `lines` are those of ranks.jsonl: `step`, and `ranks` by layer name, which hold until the next line.
    Raises `OutputError` if the file cannot be written.
    """
    save(draw_ranks(lines, last_step, title=title), path)


def draw_ranks(lines: Sequence[Mapping[str, Any]], last_step: int, *, title: str) -> "Figure":
    """Draw the figure of `plot_ranks`: a row for each target, steps to the right, ranks as colours."""
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for line in lines for name in line["ranks"]))
    figure = new_figure(height=max(HEIGHT_INCHES, 1.3 + ROW_INCHES * len(names)))
    axes = figure.add_subplot()
    table = [[line["ranks"].get(name, 0) for line in lines] for name in names]
    # a cell reaches to the next line's step; the last one has a width of at least one step
    edges = [*(line["step"] for line in lines), max(last_step, lines[-1]["step"] + 1)]
    largest = max(map(max, table))
    mesh = axes.pcolormesh(edges, range(len(names) + 1), table, cmap="cividis", vmin=0, vmax=largest)
    # `layers.3.mlp.dense` of `transformer.encoder.layers.3.mlp.dense`
    axes.set_yticks(
        [i + 0.5 for i in range(len(names))],
        [name[max(name.find("layers."), 0) :] for name in names],
        fontsize=6,
    )
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bar = figure.colorbar(mesh, ax=axes, label="rank", ticks=MaxNLocator(integer=True))
    bar.outline.set_visible(False)
    total = [sum(line["ranks"].values()) for line in (lines[0], lines[-1])]
    now = f", {total[1]:,} now" if total[0] != total[1] else ""
    add_head(figure, f"{title}: ranks, in all {total[0]:,}{' at first' if now else ''}{now}")
    return figure
