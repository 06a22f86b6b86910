"""Losses of a run by step, from the lines of its metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

SMOOTH_FROM_POINTS = 40
SMOOTH_WINDOWS = 25
"""A smoothed curve averages over one part in so many of the steps."""

Metrics = Sequence[Mapping[str, Any]]
Curve = dict[int, float]


def read_curve(metrics: Metrics, key: str) -> Curve:
    """Values by step in order, nan where one is no finite number; of a step that was run again, the last."""
    points = {int(line["step"]): line[key] for line in metrics if key in line}
    return {step: _number(points[step]) for step in sorted(points)}


def read_seconds(metrics: Metrics) -> Curve:
    """Training time in seconds up to the end of each step that has a line, from 0 at step 0.

    Evaluating, saving and the pause before a resume are not in it.
    """
    seconds = read_curve(metrics, "step_s")
    steps = sorted({0, *(line["step"] for line in metrics)})
    return dict(zip(steps, accumulate(seconds.get(step, 0.0) for step in steps), strict=True))


def candidates(metrics: Metrics) -> Curve:
    """Evaluation losses of what a run may deliver: after a step, AdaLoRA's when its ranks have settled."""
    early = {line["step"] for line in metrics if line.get("is_settled") is False}
    losses = finite(read_curve(metrics, "eval_loss"))
    return {step: loss for step, loss in losses.items() if step > 0 and step not in early}


def lowest(losses: Curve) -> int | None:
    """The step of the lowest loss, of equal ones the first, as training chooses its best."""
    return min(losses, key=lambda step: losses[step], default=None)


def finite(curve: Curve) -> Curve:
    """The points that are numbers."""
    return {step: value for step, value in curve.items() if value == value}


def smooth(losses: Sequence[float]) -> list[float]:
    """Means over a centred window, of the finite losses in it; a gap stays a gap."""
    half = max(len(losses) // SMOOTH_WINDOWS // 2, 2)
    sums = [0.0, *accumulate(0.0 if loss != loss else loss for loss in losses)]
    counts = [0, *accumulate(int(loss == loss) for loss in losses)]
    means = []
    for index, loss in enumerate(losses):
        first, end = max(index - half, 0), min(index + half + 1, len(losses))
        is_gap = loss != loss
        means.append(math.nan if is_gap else (sums[end] - sums[first]) / (counts[end] - counts[first]))
    return means


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
