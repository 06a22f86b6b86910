"""How long the rows are, and what was cut of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

WARNED_SHARE = 0.05
"""Share of cut or dropped rows from which a report warns."""
REFUSED_SHARE = 0.5
"""Share of rows that need a cut above which `overlong: cut` refuses the data."""

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


@dataclass(frozen=True, slots=True)
class Lengths:
    """Percentiles of lengths: half of the rows have at most `p50`."""

    p50: int
    p95: int
    p99: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        """The percentiles; all 0 where there are none."""
        ordered = sorted(lengths) or [0]
        return cls(*(ordered[-(-len(ordered) * percent // 100) - 1] for percent in PERCENTS))

    def __str__(self) -> str:
        return f"p50 {self.p50:,}, p95 {self.p95:,}, p99 {self.p99:,}, longest {self.longest:,}"

    def most(self, rows: str) -> str:
        """What most of the rows, named so, do not exceed."""
        return f"95 % of {rows} have at most {self.p95:,} tokens, 99 % at most {self.p99:,}"


@dataclass
class LengthReport:
    """Counts over the rows of one file; lengths are in tokens, before any cut."""

    limit: str = ""
    """What the rows had to fit into, in words."""
    lengths: list[int] = field(default_factory=list)
    cuts: Counter[str] = field(default_factory=Counter)
    """Rows by kind of cut (`turns`, `question`, `answer`); a row can have several."""
    drops: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason (`overlong`, `uncuttable`, `unlearned`)."""
    rows_cut: int = 0
    tokens_lost: int = 0
    """Tokens cut out of rows that were kept."""
    thoughts_lost: int = 0
    """Learned answers whose thought the chat format leaves out."""

    def add(self, uncut_tokens: int, kept_tokens: int, cuts: Sequence[str] = ()) -> None:
        """Count a row that is kept."""
        self.lengths.append(uncut_tokens)
        self.rows_cut += bool(cuts)
        self.cuts.update(set(cuts))
        self.tokens_lost += uncut_tokens - kept_tokens

    def drop(self, uncut_tokens: int, reason: str) -> None:
        """Count a row that is left out."""
        self.lengths.append(uncut_tokens)
        self.drops[reason] += 1

    @property
    def rows(self) -> int:
        """Rows seen, kept or not."""
        return len(self.lengths)

    @property
    def rows_dropped(self) -> int:
        """Rows left out."""
        return self.drops.total()

    @property
    def share(self) -> float:
        """Share of the rows that were cut or dropped."""
        return (self.rows_cut + self.rows_dropped) / max(1, self.rows)

    @property
    def overlong_share(self) -> float:
        """Share of the rows that did not fit as they were."""
        return (self.rows_cut + self.drops["overlong"] + self.drops["uncuttable"]) / max(1, self.rows)

    @property
    def percentiles(self) -> Lengths:
        """Of the lengths."""
        return Lengths.of(self.lengths)

    def lines(self) -> list[str]:
        """The report for a terminal, one fact a line."""
        counts = [(f"{self.cuts[kind]:,} {words}", self.cuts[kind]) for kind, words in CUTS.items()]
        counts += [(f"{self.drops[kind]:,} {words}", self.drops[kind]) for kind, words in DROPS.items()]
        happened = [text for text, count in counts if count]
        lines = [f"{self.rows:,} rows; tokens before any cut: {self.percentiles}; limit {self.limit}"]
        if happened:
            lines.append(f"of these, {'; '.join(happened)}; {self.tokens_lost:,} tokens lost")
        if self.thoughts_lost:
            lines.append(f"{self.thoughts_lost:,} thoughts left out: this chat format learns none")
        return lines

    @property
    def warning(self) -> str | None:
        """A sentence for the user when more than 5 % of the rows were cut or dropped."""
        if self.share <= WARNED_SHARE:
            return None
        return (
            f"{self.share:.0%} of the rows were cut or dropped at {self.limit}; "
            f"{self.percentiles.most('them')}"
        )
