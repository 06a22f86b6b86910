"""Curves, bars and rank maps, laid out as places in a box that the page stretches to its width.

A line is the path of an SVG of 1000 x 1000 units that is stretched without keeping its proportions; all
texts are laid above it by percent, so that they keep their size at any width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glmtune.reports.curves import SMOOTH_FROM_POINTS, Curve, finite, is_wide, smooth
from glmtune.reports.texts import Text, text

EDGE = 1000
"""Units along the edge of a chart's SVG."""
MOST_POINTS = 600
"""Points that a line is drawn with: more than a screen can show apart."""
MARKED_POINTS = 60
"""Number of evaluations up to which each has a point."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The range of an axis."""

    low: float
    high: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value in percent of the axis."""
        low, high, here = (math.log(x) if self.is_log else x for x in (self.low, self.high, value))
        return 100 * (here - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Tick:
    """A label of an axis, at a place in percent."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A curve to be drawn."""

    name: Text
    curve: Curve
    colour: int = 0
    is_faint: bool = False
    """True for the values of each step below their smoothed curve."""
    has_points: bool = False
    is_listed: bool = True
    """True to name it in the legend and beside the pointer."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve as a path of the SVG; `points` is a path of dots."""

    series: Series
    path: str
    points: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart as the page draws it; `lines` or `bars` are there, not both."""

    title: Text
    unit: Text
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line] = field(default_factory=list)
    bars: list[tuple[float, float, float, str]] = field(default_factory=list)
    """Left edge, width and height in percent, and the words of each bar."""
    star: tuple[float, float] | None = None
    """Place of the best evaluation from the left and from below, in percent."""
    mark: tuple[float, Text] | None = None
    """Place and words of the line of a limit; beyond 100 percent for one that is not on the axis."""
    hover: dict[str, Any] = field(default_factory=dict)
    """The values that the page's script shows beside the pointer."""


def run_series(curve: Curve, name: str, *, is_noisy: bool = True) -> list[Series]:
    """Return a curve of a run; of a long noisy one also its running mean. `name` is the key of its name."""
    if len(curve) < SMOOTH_FROM_POINTS or not is_noisy:
        return [Series(name=text(name), curve=curve, has_points=len(curve) == 1)]
    return [
        Series(name=text(f"{name}_each"), curve=curve, is_faint=True),
        Series(name=text(f"{name}_smooth"), curve=smoothed(curve)),
    ]


def smoothed(curve: Curve) -> Curve:
    """Return the running mean of a long curve; a short one as it is."""
    if len(curve) < SMOOTH_FROM_POINTS:
        return curve
    return dict(zip(curve, smooth(list(curve.values())), strict=True))


def curve_chart(
    title: Text,
    unit: Text,
    series: Sequence[Series],
    *,
    best: tuple[int, float] | None = None,
    from_zero: bool = False,
) -> Chart | None:
    """Lay out curves over their steps; None if no value is finite. `best` is a step with its value.

    A value far above the others makes their axis logarithmic, as in loss.png, unless it begins at zero.
    """
    drawn = [each for each in series if finite(each.curve)]
    if not drawn:
        return None
    values = [value for each in drawn for value in finite(each.curve).values()]
    steps = [step for each in drawn for step in each.curve]
    x, x_ticks = _linear(min(steps), max(steps), is_whole=True, is_tight=True)
    if from_zero:
        y, y_ticks = _linear(min(0, *values), max(values))
    else:
        y, y_ticks = _logarithmic(values) if is_wide(values) else _linear(min(values), max(values))
    return Chart(
        title=title,
        unit=unit,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        lines=[_line(each, x, y) for each in drawn],
        star=(x.at(best[0]), y.at(best[1])) if best else None,
        hover={
            "low": x.low,
            "high": x.high,
            "series": [
                {
                    "name": each.name._asdict(),
                    "colour": each.colour,
                    "points": [
                        [step, float(f"{value:.5g}"), round(y.at(value), 2)]
                        for step, value in thin(finite(each.curve)).items()
                    ],
                }
                for each in drawn
                if each.is_listed
            ],
        },
    )


def histogram(facts: Mapping[str, Any]) -> Chart:
    """Lay out the lengths of rows as data.json has them, with the limit that rows were cut at."""
    bars = facts["histogram"]
    width, counts, longer = bars["width"], bars["counts"], bars["longer"]
    shown = [*counts, *([longer] if longer else [])]
    y, y_ticks = _linear(0, max(shown, default=0), is_whole=True)
    x, x_ticks = _linear(0, max(width * len(shown), 1), is_whole=True, is_tight=True)
    end = width * len(counts)
    rects = [
        (
            x.at(width * i),
            x.at(width) - x.at(0),
            y.at(count),
            f"{width * i + 1:,}–{width * (i + 1):,}: {count:,}",
        )
        for i, count in enumerate(counts)
    ]
    if longer:
        rects.append((x.at(end), x.at(width) - x.at(0), y.at(longer), f"> {end:,}: {longer:,}"))
        x_ticks = [tick for tick in x_ticks if tick.at <= x.at(end)]
    mark = None
    if (most := facts["most_tokens"]) is not None:
        is_far = most > end
        mark = (
            x.at(most) if not is_far else 101.0,
            text("limit_far" if is_far else "limit", limit=facts["limit"]),
        )
    return Chart(
        title=text("lengths"),
        unit=text("lengths_unit"),
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        bars=rects,
        mark=mark,
    )


@dataclass(frozen=True, slots=True)
class RankMap:
    """AdaLoRA's ranks over the steps of a run: a row of cells for each target."""

    rows: list[tuple[str, list[tuple[float, float, float, str]]]]
    """A target's name, and of each cell its left edge and width in percent, its shade and its words."""
    x_ticks: list[Tick]
    largest: int
    first: int
    last: int


def rank_map(lines: Sequence[Mapping[str, Any]], last_step: int) -> RankMap:
    """Lay out the lines of ranks.jsonl, which hold from their step to that of the next line."""
    edges = [*(line["step"] for line in lines), max(last_step, lines[-1]["step"] + 1)]
    x, x_ticks = _linear(edges[0], edges[-1], is_whole=True, is_tight=True)
    names = list(dict.fromkeys(name for line in lines for name in line["ranks"]))
    largest = max(max(line["ranks"].values()) for line in lines)
    rows = []
    for name in names:
        ranks = [line["ranks"].get(name, 0) for line in lines]
        # equal neighbours are one cell: a long run has thousands of lines
        begins = [i for i, rank in enumerate(ranks) if i == 0 or rank != ranks[i - 1]]
        cells = [
            (
                x.at(edges[i]),
                x.at(edges[end]) - x.at(edges[i]),
                ranks[i] / max(largest, 1),
                f"{name}: {ranks[i]} ({edges[i]:,}–{edges[end]:,})",
            )
            for i, end in zip(begins, [*begins[1:], len(ranks)], strict=True)
        ]
        # `layers.3.mlp.dense` of `transformer.encoder.layers.3.mlp.dense`
        rows.append((name[max(name.find("layers."), 0) :], cells))
    first, last = (sum(line["ranks"].values()) for line in (lines[0], lines[-1]))
    return RankMap(rows, x_ticks, largest, first, last)


def thin(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """Return at most so many points of a curve: the lowest and the highest of each stretch of its steps."""
    steps = list(curve)
    if len(steps) <= most:
        return curve
    kept: list[int] = []
    for part in range(most // 2):
        stretch = steps[part * len(steps) // (most // 2) : (part + 1) * len(steps) // (most // 2)]
        known = [step for step in stretch if curve[step] == curve[step]] or stretch[:1]
        kept += sorted({min(known, key=curve.__getitem__), max(known, key=curve.__getitem__)})
    return {step: curve[step] for step in kept}


def _linear(
    low: float, high: float, *, is_whole: bool = False, is_tight: bool = False
) -> tuple[Scale, list[Tick]]:
    """Return the scale from `low` to `high` and its ticks; if not tight, it begins and ends at a tick."""
    from matplotlib.ticker import MaxNLocator

    if high - low <= 1e-6 * abs(high):  # a single value: room around it
        low, high = (low, low + 1) if is_whole else (low - (abs(low) / 10 or 1), low + (abs(low) / 10 or 1))
    places = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=is_whole).tick_values(low, high)
    scale = Scale(low, high) if is_tight else Scale(float(places[0]), float(places[-1]))
    return scale, _ticks(scale, places)


def _logarithmic(values: Sequence[float]) -> tuple[Scale, list[Tick]]:
    from matplotlib.ticker import LogLocator

    scale = Scale(min(values) / 1.1, max(values) * 1.1, is_log=True)
    return scale, _ticks(scale, LogLocator(subs=(1, 2, 5)).tick_values(scale.low, scale.high))


def _ticks(scale: Scale, places: Sequence[float]) -> list[Tick]:
    return [Tick(scale.at(value), f"{value:,.6g}") for value in places if scale.low <= value <= scale.high]


def _line(series: Series, x: Scale, y: Scale) -> Line:
    """Return a curve as a path, broken where a value is not finite."""
    parts, is_broken = [], True
    points = thin(series.curve)
    for step, value in points.items():
        if value != value:  # nan
            is_broken = True
            continue
        parts.append(f"{'M' if is_broken else 'L'}{_place(x, y, step, value)}")
        is_broken = False
    dots = ""
    if series.has_points and len(points) <= MARKED_POINTS:
        # a line of no length with round ends is a dot that stretching leaves round
        dots = "".join(f"M{_place(x, y, step, value)}h0" for step, value in finite(points).items())
    return Line(series, "".join(parts), dots)


def _place(x: Scale, y: Scale, step: float, value: float) -> str:
    return f"{EDGE * x.at(step) / 100:.1f} {EDGE - EDGE * y.at(value) / 100:.1f}"
