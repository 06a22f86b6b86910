"""A picture of AdaLoRA's ranks: each target a row, the steps of the run to the right."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.report.plots import DPI, HEIGHT_INCHES, WIDTH_INCHES
from glmtune.runs import replacing

ROW_INCHES = 0.16
"""Height of a target's row where there are many."""


def plot_ranks(lines: Sequence[Mapping[str, Any]], last_step: int, path: Path) -> None:
    """Draw the ranks up to `last_step` as a PNG file, replacing it whole or not at all.

    `lines` are those of ranks.jsonl: `step`, and `ranks` by the layer's name, which hold until the next line.
    Raises `OutputError` where the file cannot be written.
    """
    picture = _draw(lines, last_step)
    with replacing(path) as partial:
        partial.write_bytes(picture)


def _draw(lines: Sequence[Mapping[str, Any]], last_step: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for line in lines for name in line["ranks"]))
    height = max(HEIGHT_INCHES, 1 + ROW_INCHES * len(names))
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    table = [[line["ranks"].get(name, 0) for line in lines] for name in names]
    edges = [*(line["step"] for line in lines), max(last_step, lines[-1]["step"] + 1)]
    largest = max(map(max, table))
    mesh = axes.pcolormesh(edges, range(len(names) + 1), table, cmap="cividis", vmin=0, vmax=largest)
    axes.set_yticks([i + 0.5 for i in range(len(names))], [*map(_short, names)], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(mesh, ax=axes, label="rank", ticks=MaxNLocator(integer=True))
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def _short(name: str) -> str:
    """`layers.3.mlp.dense` of `transformer.encoder.layers.3.mlp.dense`."""
    return name[max(name.find("layers."), 0) :]
