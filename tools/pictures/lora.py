"""Draws what LoRA trains in a block of ChatGLM2-6B or ChatGLM3-6B.

python -m tools.pictures.lora FILE.png
"""

import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from glmtune.report.plots import DPI, TRAINING_COLOUR

WIDTH_INCHES, HEIGHT_INCHES = 11.0, 6.2
TRAINED, FROZEN, LINE, TEXT = TRAINING_COLOUR, "#D9D9D9", "#555555", "#222222"
BLOCK = (
    ("RMSNorm", ""),
    ("query_key_value", "4608 x 4096"),
    ("attention", ""),
    ("dense", "4096 x 4096"),
    ("RMSNorm", ""),
    ("dense_h_to_4h", "27392 x 4096"),
    ("SwiGLU", ""),
    ("dense_4h_to_h", "4096 x 13696"),
)
"""The parts of a block from the bottom up; those with a size are linear layers."""
ADAPTED = 1
BLOCK_LEFT, BLOCK_WIDTH, FIRST_Y, ROW, BOX = 0.55, 2.7, 0.95, 0.6, 0.4


def draw(path: Path) -> None:
    """Write the picture as a PNG file."""
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH_INCHES)
    axes.set_ylim(0, HEIGHT_INCHES)
    axes.axis("off")
    _block(axes)
    _adapter(axes)
    _legend(axes)
    FigureCanvasAgg(figure).print_png(str(path))


def _block(axes: Any) -> None:
    middle, top = BLOCK_LEFT + BLOCK_WIDTH / 2, FIRST_Y + len(BLOCK) * ROW
    frame = FancyBboxPatch(
        (BLOCK_LEFT - 0.25, FIRST_Y - 0.22), BLOCK_WIDTH + 0.75, top - FIRST_Y + 0.2,
        boxstyle="round,pad=0,rounding_size=0.12", facecolor="white", edgecolor=LINE, linewidth=1.2,
    )  # fmt: skip
    axes.add_patch(frame)
    _text(axes, middle + 0.2, top + 0.2, "one of 28 blocks", size=11, align="left")
    _arrow(axes, (middle, FIRST_Y - 0.5), (middle, FIRST_Y))
    for number, (name, size) in enumerate(BLOCK):
        bottom = FIRST_Y + number * ROW
        _box(axes, (BLOCK_LEFT, bottom, BLOCK_WIDTH, BOX), is_linear=bool(size))
        _text(axes, middle, bottom + BOX / 2, f"{name}   {size}" if size else name, size=10)
        _arrow(axes, (middle, bottom + BOX), (middle, bottom + ROW))
        if number == ADAPTED:
            axes.add_patch(Rectangle((BLOCK_LEFT + BLOCK_WIDTH + 0.05, bottom), 0.1, BOX, facecolor=TRAINED))
    _residual(axes, middle, FIRST_Y - 0.12, FIRST_Y + 4 * ROW - 0.11)
    _residual(axes, middle, FIRST_Y + 4 * ROW - 0.11, top - 0.1)
    _arrow(axes, (middle, top - 0.05), (middle, top + 0.3))


def _residual(axes: Any, middle: float, start: float, end: float) -> None:
    """The way around a half block."""
    right = BLOCK_LEFT + BLOCK_WIDTH + 0.25
    axes.plot([middle, right, right], [start, start, end], color=LINE, linewidth=1.0)
    _arrow(axes, (right, end), (middle + 0.02, end))


def _adapter(axes: Any) -> None:
    """query_key_value, large: W beside A and B."""
    left, bottom = 5.0, 0.85
    box = FIRST_Y + ADAPTED * ROW
    for y, target in ((box, bottom), (box + BOX, 5.45)):
        axes.plot(
            [BLOCK_LEFT + BLOCK_WIDTH + 0.15, left],
            [y, target],
            color=LINE,
            linewidth=0.8,
            linestyle=(0, (4, 3)),
        )
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom),
            5.6,
            4.6,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor="white",
            edgecolor=LINE,
            linewidth=1.2,
        )
    )
    _text(axes, left + 0.2, 5.2, "query_key_value", size=11, align="left")
    inner, wide, above = 1.25, 6.6, 4.75
    _text(axes, 7.8, inner, "x   (4096 numbers a token)", size=10.5)
    _box(axes, (5.4, 2.0, wide - 4.3, 2.0), is_linear=True)
    _text(axes, 6.55, 3.15, "W", size=17)
    _text(axes, 6.55, 2.7, "4608 x 4096, frozen", size=10)
    _trapezium(axes, (9.2, 2.0), 2.3, 0.75, 0.75, "A   r x 4096")
    _trapezium(axes, (9.2, 3.25), 0.75, 2.3, 0.75, "B   4608 x r")
    _arrow(axes, (9.2, 2.75), (9.2, 3.25))
    _text(axes, 9.33, 3.0, "r numbers", size=9.5, align="left")
    axes.plot([6.55, 9.2], [1.6, 1.6], color=LINE, linewidth=1.2)
    axes.plot([7.8, 7.8], [inner + 0.15, 1.6], color=LINE, linewidth=1.2)
    _arrow(axes, (6.55, 1.6), (6.55, 2.0))
    _arrow(axes, (9.2, 1.6), (9.2, 2.0))
    axes.plot([6.55, 6.55, 7.64], [4.0, 4.4, 4.4], color=LINE, linewidth=1.2)
    axes.plot([9.2, 9.2, 7.96], [4.0, 4.4, 4.4], color=TRAINED, linewidth=1.6)
    _text(axes, 9.1, 4.56, "times alpha / r", size=9.5, colour=TRAINED)
    _text(axes, 7.8, 4.4, "+", size=15)
    axes.plot(7.8, 4.4, marker="o", markersize=19, markerfacecolor="none", markeredgecolor=LINE)
    _arrow(axes, (7.8, 4.56), (7.8, above + 0.2))
    _text(axes, 7.95, above + 0.1, "queries, keys, values   (4608)", size=10, align="left")


def _trapezium(
    axes: Any, place: tuple[float, float], low: float, high: float, height: float, words: str
) -> None:
    """A trained matrix, as wide below as what goes in and above as what comes out."""
    middle, bottom = place
    corners = [
        (middle - low / 2, bottom), (middle + low / 2, bottom),
        (middle + high / 2, bottom + height), (middle - high / 2, bottom + height),
    ]  # fmt: skip
    axes.fill(*zip(*corners, strict=True), facecolor=TRAINED, edgecolor="none")
    _text(axes, middle, bottom + height * (0.7 if low < high else 0.27), words, size=12, colour="white")


def _legend(axes: Any) -> None:
    for x, colour, words in ((0.3, TRAINED, "trained"), (1.5, FROZEN, "frozen")):
        axes.add_patch(Rectangle((x, 0.07), 0.22, 0.22, facecolor=colour))
        _text(axes, x + 0.32, 0.18, words, size=10.5, align="left")
    _text(axes, 10.6, 0.43, "r = 8:  28 x 8 x (4096 + 4608) = 1,949,696 trained", size=10.5, align="right")


def _box(axes: Any, place: tuple[float, float, float, float], *, is_linear: bool) -> None:
    left, bottom, width, height = place
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=FROZEN if is_linear else "#F3F3F3",
            edgecolor="none",
        )
    )


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": LINE, "shrinkA": 0, "shrinkB": 0})


def _text(
    axes: Any, x: float, y: float, words: str, *, size: float, align: str = "center", colour: str = TEXT
) -> None:
    axes.text(x, y, words, fontsize=size, ha=align, va="center", color=colour)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
