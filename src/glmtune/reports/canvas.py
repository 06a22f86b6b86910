"""Draw the parts that all pictures share: figure, head, legend, texts; save the file."""

import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from glmtune.reports.curves import is_wide
from glmtune.reports.fonts import LEFT_OUT, find_families, writable
from glmtune.run_files import replacing

if TYPE_CHECKING:  # matplotlib is slow to import
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.legend import Legend
    from matplotlib.text import Text

WIDTH_INCHES, HEIGHT_INCHES, DPI = 8.0, 4.5, 150
MARGIN, GAP = 0.1, 0.06
"""Inches around the head and between its lines."""
TITLE_POINTS, SMALL_POINTS = 12, 9
CAVEAT_COLOUR, QUIET_COLOUR = "#B00020", "0.35"
LETTERS_PER_INCH = 14
"""Letters of `SMALL_POINTS` in an inch."""
MOST_IN_TITLE, MOST_IN_LABEL = 100, 60
"""Most letters of a title and of a legend's label; longer ones lose their middle."""
MOST_COLUMNS = 10
"""Most columns of a legend."""


def new_figure(*, width: float = WIDTH_INCHES, height: float = HEIGHT_INCHES) -> "Figure":
    """Make an empty figure of a size in inches, without a window or pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # the constrained layout fits axes and labels into what add_head leaves free
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_head(
    figure: "Figure",
    title: str,
    *,
    subtitle: str = "",
    caveats: Iterable[str] = (),
    handles: Sequence["Artist"] = (),
) -> None:
    """Write title, subtitle, caveats and legend above the axes, one below the other.

    The axes get the remaining height. `handles` are the legend's artists; their labels may hold any text.
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
        # smaller letters for a line that would leave the figure: 0.98, as letters do not scale exactly
        text_width = shown.get_window_extent(_canvas(figure).get_renderer()).width
        shown.set_fontsize(float(shown.get_fontsize()) * min(1, 0.98 * _room(figure) / max(text_width, 1)))
        top += _inches_high(shown, figure) + GAP
    if handles:
        top += _inches_high(_add_legend(figure, handles, top), figure)
    layout = cast("ConstrainedLayoutEngine", figure.get_layout_engine())
    layout.set(rect=(0, 0, 1, 1 - (top + GAP) / height))


def _add_legend(figure: "Figure", handles: Sequence["Artist"], top: float) -> "Legend":
    """Add the legend `top` inches below the upper edge, in as many columns as fit."""
    width, height = figure.get_size_inches()
    # matplotlib cannot tell the width of a legend before it is drawn, so try from the widest
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
            write(text, _shorten(str(handle.get_label()), MOST_IN_LABEL))
        legend.set_in_layout(False)  # its height is already taken from the axes by add_head
        if columns == 1 or legend.get_window_extent().width <= _room(figure):
            return legend
        legend.remove()
    raise AssertionError("a legend has one column at least")


def write(text: "Text", letters: str) -> None:
    """Set the letters of a matplotlib text literally, in a font that has them."""
    shown = writable(letters)
    text.set_parse_math(False)  # a name may hold dollar signs
    text.set_text(shown)
    text.set_fontfamily(find_families([shown]) or [])


def _shorten(text: str, most: int) -> str:
    """Return the text, without its middle if it has more than `most` letters."""
    half = most // 2
    return text if len(text) <= most else text[:half] + LEFT_OUT + text[-half:]


def _room(figure: "Figure") -> float:
    """Return the pixels between the left and right margins."""
    return float(figure.bbox.width - 2 * MARGIN * figure.dpi)


def style(axes: "Axes") -> None:
    """Draw a faint grid and no frame."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def scale_losses(axes: "Axes", losses: Iterable[float]) -> None:
    """Label the loss axis; make it logarithmic if one huge loss would flatten the others."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    is_log = is_wide(list(losses))
    axes.set_ylabel("loss per target token" + (", logarithmic" if is_log else ""))
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG file atomically. Raises `OutputError` if it cannot be written."""
    # drawn into memory first: an error while drawing leaves no file behind
    picture = io.BytesIO()
    _canvas(figure).print_png(picture)
    with replacing(path) as partial:
        partial.write_bytes(picture.getvalue())


def _inches_high(artist: "Artist", figure: "Figure") -> float:
    return float(artist.get_window_extent(_canvas(figure).get_renderer()).height / figure.dpi)


def _canvas(figure: "Figure") -> "FigureCanvasAgg":
    return cast("FigureCanvasAgg", figure.canvas)  # as new_figure made it
