"""What the pictures share: size, head, legend, letters, the file."""

import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from glmtune.report.fonts import LEFT_OUT, find_families, writable
from glmtune.run_files import replacing

WIDTH_INCHES, HEIGHT_INCHES, DPI = 8.0, 4.5, 150
MARGIN, GAP = 0.1, 0.06
"""Inches around the head, and between its lines."""
TITLE_POINTS, SMALL_POINTS = 12, 9
CAVEAT_COLOUR, QUIET_COLOUR = "#B00020", "0.35"
LETTERS_PER_INCH = 14
"""Of the small letters."""
MOST_IN_TITLE, MOST_IN_LABEL = 100, 60
"""Letters; a folder's name may have more."""
MOST_COLUMNS = 10
WIDE = 20
"""A loss so many times the median would press all others into a flat line: the axis is logarithmic."""


def new_figure(*, width: float = WIDTH_INCHES, height: float = HEIGHT_INCHES) -> Any:
    """An empty figure of a size in inches; no window, no state of matplotlib's own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_head(
    figure: Any, title: str, *, subtitle: str = "", caveats: Iterable[str] = (), handles: Sequence[Any] = ()
) -> None:
    """Title, smaller line, caveats and legend above the axes, each below the one before.

    The axes get the rest. The handles are artists; their labels may hold any text.
    """
    width, height = figure.get_size_inches()
    top = MARGIN
    lines: list[tuple[str, dict[str, Any]]] = [
        (_shorten(title, MOST_IN_TITLE), {"fontsize": TITLE_POINTS}),
    ]
    if subtitle:
        lines.append((_shorten(subtitle, MOST_IN_TITLE), {"fontsize": SMALL_POINTS, "color": QUIET_COLOUR}))
    for text in caveats:
        wrapped = textwrap.wrap(text, int((width - 2 * MARGIN) * LETTERS_PER_INCH))
        lines += [(line, {"fontsize": SMALL_POINTS, "color": CAVEAT_COLOUR}) for line in wrapped]
    for text, look in lines:
        shown = figure.text(MARGIN / width, 1 - top / height, "", va="top", **look)
        write(shown, text)
        _fit(shown, figure)
        top += _inches_high(shown, figure) + GAP
    if handles:
        top += _inches_high(_add_legend(figure, handles, top), figure)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (top + GAP) / height))


def _add_legend(figure: Any, handles: Sequence[Any], top: float) -> Any:
    """The legend at a distance from the top in inches, in as many columns as fit."""
    width, height = figure.get_size_inches()
    for columns in range(min(len(handles), MOST_COLUMNS), 0, -1):
        legend = figure.legend(
            handles,
            ["" for _ in handles],  # not yet: a label that begins with _ would be left out
            loc="upper left",
            bbox_to_anchor=(MARGIN / width, 1 - top / height),
            ncols=columns,
            frameon=False,
            fontsize=SMALL_POINTS,
            borderaxespad=0,
            borderpad=0,
            columnspacing=1.4,
            handletextpad=0.6,
        )
        for text, handle in zip(legend.get_texts(), handles, strict=True):
            write(text, _shorten(handle.get_label(), MOST_IN_LABEL))
        legend.set_in_layout(False)
        if columns == 1 or legend.get_window_extent().width <= _room(figure):
            return legend
        legend.remove()
    raise AssertionError("a legend has one column at least")


def write(text: Any, letters: str) -> None:
    """Give a text of matplotlib its letters, those that a font here has, as they are."""
    shown = writable(letters)
    text.set_parse_math(False)  # a name may hold dollar signs
    text.set_text(shown)
    text.set_fontfamily(find_families([shown]) or [])


def _shorten(text: str, most: int) -> str:
    """The text, its middle left out where it is long."""
    half = most // 2
    return text if len(text) <= most else text[:half] + LEFT_OUT + text[-half:]


def _fit(text: Any, figure: Any) -> None:
    """Make a line's letters smaller where it would not end in the figure."""
    width = text.get_window_extent(figure.canvas.get_renderer()).width
    text.set_fontsize(text.get_fontsize() * min(1, 0.98 * _room(figure) / max(width, 1)))


def _room(figure: Any) -> float:
    """Pixels between the margins."""
    return float(figure.bbox.width - 2 * MARGIN * figure.dpi)


def style(axes: Any) -> None:
    """A quiet grid and no frame."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def scale_losses(axes: Any, losses: Iterable[float]) -> None:
    """Label the axis of the losses; make it logarithmic where a huge one would hide the others."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    known = [loss for loss in losses if loss == loss]
    is_wide = len(known) > 2 and min(known) > 0 and max(known) > WIDE * median(known)
    axes.set_ylabel("loss per target token" + (", logarithmic" if is_wide else ""))
    if is_wide:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def save(figure: Any, path: Path) -> None:
    """Write a PNG file, replacing it whole or not at all. Raises `OutputError`."""
    picture = io.BytesIO()
    figure.canvas.print_png(picture)
    with replacing(path) as partial:
        partial.write_bytes(picture.getvalue())


def _inches_high(artist: Any, figure: Any) -> float:
    return float(artist.get_window_extent(figure.canvas.get_renderer()).height / figure.dpi)
