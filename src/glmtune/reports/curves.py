"""Read losses and times by step from the lines of a run's metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import median
from typing import Any

SMOOTH_FROM_POINTS = 40
"""Number of points from which a curve is also drawn smoothed."""
SMOOTH_WINDOWS = 25
"""A smoothed curve averages over 1 / SMOOTH_WINDOWS of its points."""

WIDE = 20
"""A loss above WIDE times the median makes the axis logarithmic: the others would be a flat line."""

Metrics = Sequence[Mapping[str, Any]]
"""Lines of a metrics.jsonl."""
Curve = dict[int, float]
"""Values by step, in order of the steps."""


def read_curve(metrics: Metrics, key: str) -> Curve:
    """Return a key's values by step, nan for a value that is no finite number."""
    # a resumed run repeats the steps after its checkpoint: the last line of a step counts
    points = {int(line["step"]): line[key] for line in metrics if key in line}
    return {
        step: float(points[step])
        if isinstance(points[step], int | float) and math.isfinite(points[step])
        else math.nan
        for step in sorted(points)
    }


def read_source_curves(metrics: Metrics) -> dict[str, Curve]:
    """Return the training losses by the source of the rows, where a run has several."""
    lines = [line for line in metrics if "losses" in line]
    names = dict.fromkeys(name for line in lines for name in line["losses"])
    return {
        name: read_curve([{"step": line["step"], **line["losses"]} for line in lines], name) for name in names
    }


def read_seconds(metrics: Metrics) -> Curve:
    """Return the training time in seconds up to the end of each step, 0 at step 0.

    Evaluation, saving and the pause before a resume do not count.
    """
    seconds = read_curve(metrics, "step_s")
    steps = sorted({0, *(line["step"] for line in metrics)})
    return dict(zip(steps, accumulate(seconds.get(step, 0.0) for step in steps), strict=True))


def candidates(metrics: Metrics) -> Curve:
    """Return the evaluation losses that the best checkpoint is chosen by: after step 0, ranks settled."""
    # before AdaLoRA's ranks have settled, the model has more parameters than the run delivers
    early = {line["step"] for line in metrics if line.get("is_settled") is False}
    losses = finite(read_curve(metrics, "eval_loss"))
    return {step: loss for step, loss in losses.items() if step > 0 and step not in early}


def lowest(losses: Curve) -> int | None:
    """Return the step of the lowest loss, the first of equal ones, as training chooses its best."""
    return min(losses, key=lambda step: losses[step], default=None)


def finite(curve: Curve) -> Curve:
    """Return the points whose value is not nan."""
    return {step: value for step, value in curve.items() if value == value}  # nan is not equal to itself


def is_wide(losses: Sequence[float]) -> bool:
    """True for losses of which one is so large that it would flatten the others; nan does not count."""
    known = [loss for loss in losses if loss == loss]
    return len(known) > 2 and min(known) > 0 and max(known) > WIDE * median(known)


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the mean of the finite losses in a window around each point; nan stays nan."""
    half = max(len(losses) // SMOOTH_WINDOWS // 2, 2)
    # prefix sums: each window costs two lookups, whatever its width
    sums = [0.0, *accumulate(0.0 if loss != loss else loss for loss in losses)]
    counts = [0, *accumulate(int(loss == loss) for loss in losses)]
    means = []
    for index, loss in enumerate(losses):
        first, end = max(index - half, 0), min(index + half + 1, len(losses))
        is_gap = loss != loss
        means.append(math.nan if is_gap else (sums[end] - sums[first]) / (counts[end] - counts[first]))
    return means
