"""What the pictures of the guides are drawn with: a page measured in inches, and a few shapes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from glmtune.reports.canvas import DPI
from glmtune.reports.fonts import find_families
from glmtune.reports.plots import EVALUATION_COLOUR, TRAINING_COLOUR

TRAINED, FROZEN, PALE, LINE, TEXT = TRAINING_COLOUR, "#D9D9D9", "#F3F3F3", "#555555", "#222222"
SECOND = EVALUATION_COLOUR
"""A second strong colour."""
Point = tuple[float, float]
Place = tuple[float, float, float, float]
"""Left, bottom, width, height, in inches."""
Words = str | tuple[str, str]
"""Words in any language, or in English and in Chinese."""


class Page:
    """An empty page; (0, 0) is its lower left corner."""

    def __init__(self, width: float, height: float, *, chinese: bool = False) -> None:
        """Width and height in inches; the language of the words that come in two."""
        self._chinese = chinese
        self._figure = Figure(figsize=(width, height), dpi=DPI)
        self._axes: Any = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(0, height)
        self._axes.axis("off")

    def save(self, path: Path) -> None:
        """Write the page as a PNG file."""
        FigureCanvasAgg(self._figure).print_png(str(path))

    def text(
        self,
        x: float,
        y: float,
        words: Words,
        *,
        size: float = 11,
        align: str = "center",
        colour: str = TEXT,
        is_upright: bool = False,
    ) -> None:
        """Words at a point, `align` "left", "center" or "right" of it; upright ones stand on it."""
        said = words if isinstance(words, str) else words[self._chinese]
        style: dict[str, Any] = {"fontsize": size, "color": colour, "fontfamily": find_families([said])}
        if is_upright:
            style |= {"rotation": 90 if len(said) > 2 else 0, "ha": "center", "va": "bottom"}
        else:
            style |= {"ha": align, "va": "center_baseline"}
        self._axes.text(x, y, said, **style)

    def cell(self, place: Place, words: Words, colour: str = FROZEN, *, size: float = 11) -> None:
        """A box with words in its middle, white ones on a strong colour."""
        left, bottom, width, height = place
        self.box(place, colour, edge=LINE if colour == "white" else "none")
        written = TEXT if colour in (FROZEN, PALE, "white") else "white"
        self.text(left + width / 2, bottom + height / 2, words, size=size, colour=written)

    def box(self, place: Place, colour: str = FROZEN, *, edge: str = "none", rounding: float = 0.06) -> None:
        """A filled rectangle with rounded corners."""
        left, bottom, width, height = place
        style = f"round,pad=0,rounding_size={rounding}"
        corner = (left, bottom)
        self._axes.add_patch(
            FancyBboxPatch(
                corner, width, height, boxstyle=style, facecolor=colour, edgecolor=edge, linewidth=1.2
            )
        )

    def frame(self, place: Place) -> None:
        """The outline of a part of the model."""
        self.box(place, "white", edge=LINE, rounding=0.12)

    def bar(self, place: Place, colour: str, *, edge: str = "none") -> None:
        """A filled rectangle with sharp corners."""
        left, bottom, width, height = place
        self._axes.add_patch(
            Rectangle((left, bottom), width, height, facecolor=colour, edgecolor=edge, linewidth=0.8)
        )

    def line(
        self, points: Sequence[Point], *, colour: str = LINE, width: float = 1.2, dashed: bool = False
    ) -> None:
        """A line through the points."""
        style = (0, (4, 3)) if dashed else "-"
        self._axes.plot(*zip(*points, strict=True), color=colour, linewidth=width, linestyle=style)

    def arrow(self, start: Point, end: Point, *, colour: str = LINE) -> None:
        """A straight arrow."""
        self._axes.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0}
        )

    def plus(self, x: float, y: float) -> None:
        """A plus in a circle, where two ways meet."""
        self.text(x, y, "+", size=15)
        self._axes.plot(x, y, marker="o", markersize=19, markerfacecolor="none", markeredgecolor=LINE)

    def trapezium(self, place: Point, low: float, high: float, height: float, words: str) -> None:
        """A trained matrix: its middle and bottom; as wide below as what goes in, above as what comes out."""
        middle, bottom = place
        corners = [
            (middle - low / 2, bottom), (middle + low / 2, bottom),
            (middle + high / 2, bottom + height), (middle - high / 2, bottom + height),
        ]  # fmt: skip
        self._axes.fill(*zip(*corners, strict=True), facecolor=TRAINED, edgecolor="none")
        self.text(middle, bottom + height * (0.7 if low < high else 0.27), words, size=12, colour="white")

    def legend(self, x: float, y: float, *, frozen: Words = ("frozen", "冻结")) -> None:
        """Which colour is trained and which is not."""
        for left, colour, words in ((x, TRAINED, ("trained", "训练")), (x + 1.2, FROZEN, frozen)):
            self.bar((left, y, 0.22, 0.22), colour)
            self.text(left + 0.32, y + 0.11, words, align="left")
