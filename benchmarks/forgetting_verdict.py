"""How well the divergence on general prompts tells the real drop, and the thresholds that follow.

What a run really lost is read from held-out general rows with their true answers, which no verdict knows:
their loss has risen by 5 % of the base's or more. Beside it stands a coarser score, `hits`: the share of
their tokens that are the model's likeliest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt
from typing import Any

Facts = dict[str, Any]
MATTERS = 0.05
MOST_FALSE = 0.02
"""Share of runs without such a drop that a verdict may call `forgot`."""


@dataclass(frozen=True)
class Judged:
    """A run: its base, the divergence that a verdict goes by, and its real drop."""

    base: str
    kl: float
    rise: float
    """Of the rows' loss, in parts of the base's: 0.05 for 5 %."""
    drop: float
    """Of their `hits`, in parts of the base's."""

    @property
    def has_lost(self) -> bool:
        """Whether the rise of the loss matters."""
        return self.rise >= MATTERS

    @property
    def by_hits(self) -> "Judged":
        """The same run, its loss judged by the hits."""
        return replace(self, rise=self.drop)


def judged(lines: Iterable[Facts]) -> list[Judged]:
    """The runs of results/forgetting/runs.jsonl that have a divergence."""
    found = []
    for line in lines:
        if "kl" in line:
            (base_hits, hits), (base_loss, loss) = line["general_hits"], line["general_loss"]
            rise, drop = loss / base_loss - 1, 1 - hits / base_hits
            found.append(Judged(line["base"], line["kl_likeliest"], rise, drop))
    return found


def auroc(runs: Sequence[Judged]) -> float:
    """Chance that of a run that lost and one that kept, drawn at random, the first diverges more."""
    lost, kept = ([run.kl for run in runs if run.has_lost is one] for one in (True, False))
    pairs = [(one > other) + (one == other) / 2 for one in lost for other in kept]
    return sum(pairs) / len(pairs)


def rates(runs: Sequence[Judged], threshold: float) -> tuple[float, float]:
    """Shares of the runs that lost nothing, and of those that lost, from the threshold on."""
    parts = [[run.kl >= threshold for run in runs if run.has_lost is one] for one in (False, True)]
    false, true = (sum(part) / len(part) if part else 0.0 for part in parts)
    return false, true


def thresholds(runs: Sequence[Judged]) -> list[float]:
    """All that tell the runs apart: between two neighbouring divergences."""
    kls = sorted({run.kl for run in runs})
    return [sqrt(one * other) for one, other in pairwise(kls)]


def lowest(runs: Sequence[Judged]) -> float:
    """The lowest threshold with at most `MOST_FALSE` false verdicts."""
    return next(one for one in thresholds(runs) if rates(runs, one)[0] <= MOST_FALSE)


def curve(runs: Sequence[Judged]) -> list[tuple[float, float]]:
    """False and true rates at every threshold, from (0, 0) to (1, 1)."""
    return [(0.0, 0.0), *(rates(runs, one) for one in reversed(thresholds(runs))), (1.0, 1.0)]


def left_out(runs: Sequence[Judged]) -> dict[str, tuple[float, float]]:
    """Rates of each base's runs at the threshold that the other bases' give; empty for a single base."""
    bases = sorted({run.base for run in runs})
    if len(bases) == 1:
        return {}
    return {
        base: rates([run for run in runs if run.base == base], lowest([r for r in runs if r.base != base]))
        for base in bases
    }
