"""The one rule by which a conversation that is too long is cut.

Oldest turns whole, then the middle of questions, then the ends of answers. What is cut is text, before it is
encoded, so no character is broken and what the format puts around the text stays whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from glmtune.errors import DataError
from glmtune.recipe.settings import DEFAULT_MAX_TOKENS, Data
from glmtune.templates import Message

_QUESTION_SHARE = 4
"""A question is cut to no less than this fraction of `max_tokens`; then it is the answer's turn."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A training example, encoded."""

    ids: list[int]
    labels: list[int]
    num_target: int
    """Tokens of the last learned answer, its end token included."""

    @property
    def num_source(self) -> int:
        """Tokens before that answer."""
        return len(self.ids) - self.num_target


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an example may be: as a whole, or (`total` None) its two parts."""

    total: int | None
    source: int = 0
    target: int = 0
    origin: str = ""
    """Where a limit that no setting names comes from, in words."""

    @classmethod
    def of(cls, settings: Data, context: int | None = None, *, num_new: int = 0) -> "Limits":
        """The limits that the settings name, else 1024 tokens or, where that is less, the model's context.

        `num_new`: tokens of the context that are left to an answer, at most half of it.
        """
        if settings.max_source_tokens is not None and settings.max_target_tokens is not None:
            return cls(None, settings.max_source_tokens, settings.max_target_tokens)
        if settings.max_tokens is not None:
            return cls(settings.max_tokens)
        room = DEFAULT_MAX_TOKENS if context is None else max(context - num_new, context // 2)
        if context is None or room >= DEFAULT_MAX_TOKENS:
            return cls(DEFAULT_MAX_TOKENS, origin="the default")
        less = f", less {context - room:,} for the answer" if room < context else ""
        return cls(room, origin=f"the model's context{f' of {context:,}' if less else ''}{less}")

    def is_source_met(self, piece: Piece) -> bool:
        """Whether what comes before the last answer is short enough."""
        return len(piece.ids) <= self.total if self.total is not None else piece.num_source <= self.source

    def is_target_met(self, piece: Piece) -> bool:
        """Whether the last answer is short enough."""
        return len(piece.ids) <= self.total if self.total is not None else piece.num_target <= self.target

    def is_met(self, piece: Piece) -> bool:
        """Whether nothing needs a cut."""
        return self.is_source_met(piece) and self.is_target_met(piece)

    def refuse(self, size: int, settings: Data, *, part: str = "") -> None:
        """Raise DataError for so many tokens, `part` says of what, where the settings allow no cut."""
        if settings.overlong == "error":
            raise DataError(
                f"{size:,} tokens{part}, allowed is {self}",
                hint=f"{self.raising}, or set data.overlong to cut or drop",
            )

    @property
    def raising(self) -> str:
        """What to do, in words, for longer rows."""
        if self.total is None:
            return "raise data.max_source_tokens and data.max_target_tokens"
        beyond = "; beyond its context the model gets worse" if "context" in self.origin else ""
        return f"raise data.max_tokens{beyond}"

    def __str__(self) -> str:
        if self.total is not None:
            return f"max_tokens {self.total:,}{f' ({self.origin})' if self.origin else ''}"
        return f"max_source_tokens {self.source:,}, max_target_tokens {self.target:,}"


class Cutter:
    """Shortens one conversation: oldest turns whole, then the middle of questions, then ends of answers."""

    def __init__(
        self,
        limits: Limits,
        encode: Callable[[list[Message]], Piece],
        count: Callable[[str], int],
    ) -> None:
        """`encode` gives the example of a conversation, `count` the tokens of a text."""
        self.limits = limits
        self.encode = encode
        self.count = count

    def cut(self, unit: list[Message]) -> tuple[Piece, list[str]] | None:
        """The shortened example and the kinds of cuts; None where even every cut is not enough."""
        cuts: list[str] = []
        unit = self._drop_rounds(unit, cuts)
        unit = self._cut_questions(unit, cuts)
        unit = self._cut_answers(unit, cuts)
        piece = self.encode(unit)
        return (piece, cuts) if self.limits.is_met(piece) else None

    def _drop_rounds(self, unit: list[Message], cuts: list[str]) -> list[Message]:
        while not self.limits.is_source_met(self.encode(unit)):
            shorter = _without_oldest_round(unit)
            if shorter is None:
                break
            unit = shorter
            cuts.append("turns")
        return unit

    def _cut_questions(self, unit: list[Message], cuts: list[str]) -> list[Message]:
        end = _last_learned(unit)
        questions = [i for i in range(end) if unit[i].role in ("user", "observation")]
        for index in sorted(questions, key=lambda i: -len(unit[i].content)):
            if self.limits.is_source_met(self.encode(unit)):
                break
            least = self._least_question(unit[index].content)
            unit = self._shorten(
                unit, index, _without_middle, least, self.limits.is_source_met, cuts, "question"
            )
        return unit

    def _least_question(self, text: str) -> int:
        """Characters of a question that are kept while there is an answer to cut."""
        if self.limits.total is None:
            return 1
        allowed = self.limits.total // _QUESTION_SHARE
        fits = _largest(1, len(text), lambda n: self.count(_without_middle(text, n)) <= allowed)
        return fits or 1

    def _cut_answers(self, unit: list[Message], cuts: list[str]) -> list[Message]:
        end = _last_learned(unit)
        earlier = [(i, self.limits.is_source_met) for i in range(end) if unit[i].role == "assistant"]
        last = [(end, self.limits.is_target_met)]
        for index, is_met in [*last, *earlier] if self.limits.total is not None else [*earlier, *last]:
            if not is_met(self.encode(unit)):
                least = _thought_length(unit[index]) + 1
                unit = self._shorten(unit, index, _without_end, least, is_met, cuts, "answer")
        return unit

    def _shorten(
        self,
        unit: list[Message],
        index: int,
        shorten: Callable[[str, int], str],
        least: int,
        is_met: Callable[[Piece], bool],
        cuts: list[str],
        kind: str,
    ) -> list[Message]:
        """The unit with one content as long as fits, or at its least."""
        text = unit[index].content

        def with_length(count: int) -> list[Message]:
            return [*unit[:index], replace(unit[index], content=shorten(text, count)), *unit[index + 1 :]]

        if len(text) <= least:
            return unit
        cuts.append(kind)
        return with_length(_largest(least, len(text), lambda n: is_met(self.encode(with_length(n)))) or least)


def _largest(low: int, high: int, is_met: Callable[[int], bool]) -> int | None:
    """The largest number from `low` to `high` that meets, if smaller ones do too; None if not even `low`."""
    if not is_met(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_met(middle) else (low, middle - 1)
    return low


def _without_middle(text: str, count: int) -> str:
    """`count` characters of a text: its head and its tail."""
    if count >= len(text):
        return text
    tail = count // 2
    return text[: count - tail] + (text[-tail:] if tail else "")


def _without_end(text: str, count: int) -> str:
    """The first `count` characters of a text."""
    return text[:count]


def _thought_length(message: Message) -> int:
    """Characters in front of an answer's own text: a thought that breaks off would never end."""
    return len(message.content) - len(message.split_thought()[1])


def _without_oldest_round(unit: list[Message]) -> list[Message] | None:
    """The unit without its oldest question and what follows it; None for a single round. System stays."""
    end = _last_learned(unit)
    starts = [i for i in range(end) if unit[i].role == "user" and (i == 0 or unit[i - 1].role != "user")]
    if len(starts) < 2:
        return None
    system = [message for message in unit[: starts[1]] if message.role == "system"]
    return [*system, *unit[starts[1] :]]


def _last_learned(unit: Sequence[Message]) -> int:
    found = last_index(unit, lambda message: message.role == "assistant" and message.loss)
    assert found is not None, "a unit has a learned answer"
    return found


def last_index(messages: Sequence[Message], wanted: Callable[[Message], bool]) -> int | None:
    """The index of the last message that is wanted."""
    return max((i for i, message in enumerate(messages) if wanted(message)), default=None)
