"""The parts that several sources of training rows have in an epoch."""

import math
from collections.abc import Sequence

from glmtune.recipe.source import Source


def count_draws(sources: Sequence[Source], num_rows: Sequence[int]) -> tuple[int, ...] | None:
    """Return the number of rows that an epoch draws from each source; together as many as all sources have.

    num_rows: the number of each source's rows. Returns None if no source has a `weight` or a `ratio`: then
    an epoch is each row once.
    """
    if all(source.weight is None and source.ratio is None for source in sources):
        return None
    rest = 1 - math.fsum(source.ratio or 0 for source in sources)
    weights = [
        0.0 if source.ratio is not None else source.weight or float(max(rows, 1))
        for source, rows in zip(sources, num_rows, strict=True)
    ]
    total, whole = sum(num_rows), math.fsum(weights) or 1.0
    exact = [
        total * (rest * weight / whole if source.ratio is None else source.ratio)
        for source, weight in zip(sources, weights, strict=True)
    ]
    counts = [int(part) for part in exact]
    # what rounding down has left goes to the largest remainders
    by_remainder = sorted(range(len(sources)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)
