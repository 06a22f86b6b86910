"""Cut conversations that are longer than the limits: the one truncation rule of training and evaluation.

The oldest rounds go first, whole; then the middle of questions, then the ends of answers. Text is cut, before
it is encoded, never ids: no character is broken, and the chat format's own tokens stay whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmtune.data.counts import TokenCounts
from glmtune.errors import DataError
from glmtune.recipe.settings import DEFAULT_MAX_TOKENS, Data
from glmtune.templates import Message, Segment

_QUESTION_SHARE = 4
"""Questions keep at least `max_tokens` / 4 tokens each; what is still too long is taken from the answers."""


class Size(NamedTuple):
    """The size of a training example, in tokens."""

    num_tokens: int
    num_target: int
    """Of the last learned answer, with its end token."""

    @property
    def num_source(self) -> int:
        """Tokens before the last learned answer."""
        return self.num_tokens - self.num_target


def measure(segments: Sequence[Segment], count: Callable[[str], int]) -> Size:
    """Return the size of an example; `count` counts the tokens of a text."""
    num_tokens = num_target = 0
    for text, is_control, is_target in segments:
        new = 1 if is_control else count(text)
        num_tokens += new
        num_target = num_target + new if is_target else 0  # counts anew behind each prompt part
    return Size(num_tokens, num_target)


@dataclass(frozen=True, slots=True)
class Limits:
    """The most tokens that an example may have: as a whole, or of its two parts if `total` is None."""

    total: int | None
    source: int = 0
    """Tokens allowed before the last answer."""
    target: int = 0
    """Tokens allowed for the last answer."""
    origin: str = ""
    """The source of a limit that no setting names, in words."""

    @classmethod
    def of(cls, settings: Data, context: int | None = None, *, num_new: int = 0) -> "Limits":
        """Return the limits that the settings name; else 1024 tokens, or the model's context if that is less.

        `num_new` tokens of the context are kept free for a generated answer, but never more than half of it.
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

    @property
    def most(self) -> int:
        """The most tokens that an example may have as a whole."""
        return self.source + self.target if self.total is None else self.total

    def source_excess(self, size: Size) -> int:
        """Return by how many tokens all before the last answer is too long (with a `total`: the whole)."""
        return size.num_tokens - self.total if self.total is not None else size.num_source - self.source

    def target_excess(self, size: Size) -> int:
        """Return by how many tokens the last answer is too long (with a `total`: the whole example)."""
        return size.num_tokens - self.total if self.total is not None else size.num_target - self.target

    def is_met(self, size: Size) -> bool:
        """True if the example needs no cut."""
        return self.source_excess(size) <= 0 and self.target_excess(size) <= 0

    def exceeded(self, num_tokens: NDArray[np.int64], num_target: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the examples of these sizes need a cut."""
        sizes: Any = Size(num_tokens, num_target)  # type: ignore[arg-type]  # the arithmetic is the same
        return np.maximum(self.source_excess(sizes), self.target_excess(sizes)) > 0  # type: ignore[no-any-return]

    def refuse(self, size: int, settings: Data, *, part: str = "") -> None:
        """Raise DataError, if `data.overlong` is `error`, for a row (or a `part` of it) of `size` tokens."""
        if settings.overlong == "error":
            raise DataError(
                f"{size:,} tokens{part}, allowed is {self}",
                hint=f"{self.raising}, or set data.overlong to cut or drop",
            )

    @property
    def raising(self) -> str:
        """The advice for longer rows: the settings to raise."""
        if self.total is None:
            return "raise data.max_source_tokens and data.max_target_tokens"
        beyond = "; beyond its context the model gets worse" if "context" in self.origin else ""
        return f"raise data.max_tokens{beyond}"

    def __str__(self) -> str:
        if self.total is not None:
            return f"max_tokens {self.total:,}{f' ({self.origin})' if self.origin else ''}"
        return f"max_source_tokens {self.source:,}, max_target_tokens {self.target:,}"


class Cutter:
    """Shortens one conversation until its example fits the limits.

    Each cut is as long as the example's size says that it must be, with one token less for each token of the
    text that is left out. The tokens around a cut may come out otherwise: who encodes the example sets its
    `size`, and cuts again while that is too large.
    """

    def __init__(
        self,
        limits: Limits,
        render: Callable[[list[Message]], Sequence[Segment]],
        counts: TokenCounts,
        conversation: list[Message],
        size: Size,
    ) -> None:
        """`render` returns the example of a conversation; `size`: that of this one."""
        self.limits = limits
        self.render = render
        self.counts = counts
        self.conversation = conversation
        self.size = size
        self.cuts: list[str] = []
        """The kinds of cuts."""

    @property
    def example(self) -> Sequence[Segment]:
        """The example of the conversation as it is cut."""
        return self.render(self.conversation)

    def fit(self) -> bool:
        """Shorten the conversation, encoding it anew for each cut. False if no cut makes it short enough."""
        while not self.limits.is_met(self.size):
            if not self.shorten():
                return False
            self.size = measure(self.example, self.counts)
        return True

    def shorten(self) -> bool:
        """Leave out as much as the size says. False if there is nothing left to leave out."""
        before = self.conversation
        while self._source_excess > 0 and (rest := _without_oldest_turn(self.conversation)):
            self.conversation = rest
            self.cuts.append("turns")
            self.size = measure(self.example, self.counts)
        self._cut_questions()
        self._cut_answers()
        return self.conversation is not before

    @property
    def _source_excess(self) -> int:
        return self.limits.source_excess(self.size)

    def _cut_questions(self) -> None:
        """Leave out the middle of questions, of the longest one first."""
        questions = [
            i
            for i in range(_last_learned(self.conversation))
            if self.conversation[i].role in ("user", "observation")
        ]
        # with one limit for all, some of the question stays while there is an answer to cut
        least = (self.limits.total or 0) // _QUESTION_SHARE
        for index in sorted(questions, key=lambda i: -len(self.conversation[i].content)):
            lost = self._cut_text(index, self._source_excess, least_tokens=least, keeps_tail=True)
            if lost:
                self.cuts.append("question")
                self.size = self.size._replace(num_tokens=self.size.num_tokens - lost)

    def _cut_answers(self) -> None:
        """Leave out the ends of answers.

        With one limit for all, the last answer is cut before the earlier ones. With two limits the earlier
        answers are part of the source, and are cut first.
        """
        end = _last_learned(self.conversation)
        earlier = [i for i in range(end) if self.conversation[i].role == "assistant"]
        for index in [end, *earlier] if self.limits.total is not None else [*earlier, end]:
            is_last = index == end
            excess = self.limits.target_excess(self.size) if is_last else self._source_excess
            answer = self.conversation[index]
            # a thought in front of the answer stays whole: one that breaks off would never end
            least = len(answer.content) - len(answer.split_thought()[1]) + 1
            if lost := self._cut_text(index, excess, least_characters=least):
                self.cuts.append("answer")
                self.size = Size(self.size.num_tokens - lost, self.size.num_target - lost * is_last)

    def _cut_text(
        self,
        index: int,
        excess: int,
        *,
        least_tokens: int = 0,
        least_characters: int = 1,
        keeps_tail: bool = False,
    ) -> int:
        """Leave so many whole tokens out of a message, its middle or its end; return how many it were."""
        text = self.conversation[index].content
        if excess <= 0 or len(text) <= least_characters:
            return 0
        ends = [0, *self.counts.ends(text)]
        num = len(ends) - 1
        if num <= least_tokens:
            return 0

        def place(index: int) -> int:
            # exact if the vocabulary writes each character as one, also with a space in front of the text
            return ends[index] * len(text) // ends[num]

        # mostly the first fits; a character of several tokens goes with all of them
        for kept in range(max(num - excess, least_tokens), least_tokens - 1, -1):
            tail = kept // 2 if keeps_tail else 0
            start, end = max(place(kept - tail), least_characters), place(num - tail)
            if start < end:
                message = replace(self.conversation[index], content=text[:start] + text[end:])
                self.conversation = [*self.conversation[:index], message, *self.conversation[index + 1 :]]
                return num - kept
        return 0


def _without_oldest_turn(conversation: list[Message]) -> list[Message] | None:
    """Return a conversation without its oldest round; None if it is the last one."""
    # several user turns in a row ask one question: a round begins with the first of them
    starts = [
        i
        for i in range(_last_learned(conversation))
        if conversation[i].role == "user" and (i == 0 or conversation[i - 1].role != "user")
    ]
    if len(starts) < 2:
        return None
    system = [message for message in conversation[: starts[1]] if message.role == "system"]
    return [*system, *conversation[starts[1] :]]


def _last_learned(conversation: Sequence[Message]) -> int:
    index = last_index(conversation, lambda message: message.role == "assistant" and message.loss)
    assert index is not None, "a conversation to cut has a learned answer"
    return index


def last_index(messages: Sequence[Message], is_wanted: Callable[[Message], bool]) -> int | None:
    """Return the index of the last message that is wanted, None if there is none."""
    return next((i for i in reversed(range(len(messages))) if is_wanted(messages[i])), None)
