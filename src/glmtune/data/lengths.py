"""The lengths of encoded rows in tokens, and the report of rows that were cut or dropped."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

WARNED_SHARE = 0.05
"""A report warns if a larger share of the rows was cut or dropped."""
REFUSED_SHARE = 0.5
"""With `data.overlong=cut`, data are refused if a larger share of the rows needs a cut."""

CUTS = {
    "turns": "lost their oldest turns",
    "question": "lost the middle of a question",
    "answer": "lost the end of an answer",
}
DROPS = {
    "overlong": "dropped: too long",
    "uncuttable": "dropped: too long even after every cut",
    "unlearned": "dropped: nothing to learn",
}


PERCENTS = (50, 95, 99, 100)
MOST_BARS = 32
"""Bars of a histogram at most, without the last one of all that is longer."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Percentiles of lengths: half of the rows have at most `p50`."""

    p50: int
    p95: int
    p99: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        """Return the percentiles of some lengths, all 0 if there are none."""
        # the nearest rank, ceil(n * percent / 100): always the length of a real row, never a mean of two
        ordered = sorted(lengths) or [0]
        return cls(*(ordered[-(-len(ordered) * percent // 100) - 1] for percent in PERCENTS))

    def __str__(self) -> str:
        return f"p50 {self.p50:,}, p95 {self.p95:,}, p99 {self.p99:,}, longest {self.longest:,}"

    def most(self, rows: str) -> str:
        """Return a sentence on the lengths that most rows do not exceed; `rows` names the rows in it."""
        return f"95 % of {rows} have at most {self.p95:,} tokens, 99 % at most {self.p99:,}"


@dataclass
class LengthReport:
    """Counts over the rows of one file; lengths are in tokens, before any cut."""

    limit: str = ""
    """The limits that the rows had to meet, in words."""
    most_tokens: int | None = None
    """The most tokens that a row may have under these limits."""
    lengths: list[int] = field(default_factory=list)
    """Of all rows, kept or left out, in their order."""
    cuts: Counter[str] = field(default_factory=Counter)
    """Rows by kind of cut (`turns`, `question`, `answer`); a row can have several kinds."""
    drops: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason (`overlong`, `uncuttable`, `unlearned`)."""
    rows_cut: int = 0
    tokens_lost: int = 0
    """Tokens cut out of the rows kept."""
    thoughts_lost: int = 0
    """Learned answers whose thought the chat format leaves out."""

    def add_cut(self, num_lost: int, cuts: Sequence[str]) -> None:
        """Count a row that was cut, with the tokens that it lost and the kinds of its cuts."""
        self.rows_cut += 1
        # a row counts once for each kind of cut, however many of its turns were cut
        self.cuts.update(set(cuts))
        self.tokens_lost += num_lost

    @property
    def rows(self) -> int:
        """The number of rows, kept or left out."""
        return len(self.lengths)

    @property
    def rows_dropped(self) -> int:
        """The number of rows left out."""
        return self.drops.total()

    @property
    def share(self) -> float:
        """The share of rows that were cut or dropped, 0 to 1."""
        return (self.rows_cut + self.rows_dropped) / max(1, self.rows)

    @property
    def overlong_share(self) -> float:
        """The share of rows longer than the limits, 0 to 1; those with nothing to learn do not count."""
        return (self.rows_cut + self.drops["overlong"] + self.drops["uncuttable"]) / max(1, self.rows)

    @property
    def percentiles(self) -> Lengths:
        """The percentiles of all rows' lengths."""
        return Lengths.of(self.lengths)

    def facts(self) -> dict[str, Any]:
        """Return the counts, the percentiles and a histogram of the lengths, as data.json keeps them."""
        return {
            "rows": self.rows,
            "rows_cut": self.rows_cut,
            "cuts": dict(self.cuts),
            "drops": dict(self.drops),
            "tokens_lost": self.tokens_lost,
            "limit": self.limit,
            "most_tokens": self.most_tokens,
            "tokens": asdict(self.percentiles),
            "histogram": self.histogram(),
        }

    def histogram(self) -> dict[str, Any]:
        """Return the `width` of a bar in tokens and the `counts`: of 1 to `width` tokens, and so on.

        The bars reach to the 99th percentile, or to the limit if a row is longer; `longer` counts the rest.
        """
        tokens, limit = self.percentiles, self.most_tokens or 0
        end = max(tokens.p99, limit if limit < tokens.longest else 0, 1)
        # the least of 1, 2, 5, 10, 20, ... with which so many bars reach the end
        width = next(n for e in range(10) for n in (10**e, 2 * 10**e, 5 * 10**e) if n * MOST_BARS >= end)
        counts = Counter(max(length - 1, 0) // width for length in self.lengths)
        bars = -(-end // width)
        longer = sum(count for bar, count in counts.items() if bar >= bars)
        return {"width": width, "counts": [counts[bar] for bar in range(bars)], "longer": longer}

    def lines(self) -> list[str]:
        """Return the report for a terminal, one fact a line."""
        counts = [(f"{self.cuts[kind]:,} {words}", self.cuts[kind]) for kind, words in CUTS.items()]
        counts += [(f"{self.drops[kind]:,} {words}", self.drops[kind]) for kind, words in DROPS.items()]
        losses = [text for text, count in counts if count]
        lines = [f"{self.rows:,} rows; tokens before any cut: {self.percentiles}; limit {self.limit}"]
        if losses:
            lines.append(f"of these, {'; '.join(losses)}; {self.tokens_lost:,} tokens lost")
        if self.thoughts_lost:
            lines.append(f"{self.thoughts_lost:,} thoughts left out: this chat format learns none")
        return lines

    @property
    def warning(self) -> str | None:
        """A sentence for the user if more than 5 % of the rows were cut or dropped, else None."""
        if self.share <= WARNED_SHARE:
            return None
        return (
            f"{self.share:.0%} of the rows were cut or dropped at {self.limit}; "
            f"{self.percentiles.most('them')}"
        )
