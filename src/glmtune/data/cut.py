"""Cut conversations that are longer than the limits: the one truncation rule of training and evaluation.

The oldest rounds go first, whole; then the middle of questions, then the ends of answers. Text is cut, before
it is encoded, never ids: no character is broken, and the chat format's own tokens stay whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from glmtune.data.counts import CutText, TokenCounts
from glmtune.data.plain import is_plain_text
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
    """Shortens one conversation until its example fits the limits."""

    def __init__(
        self, limits: Limits, render: Callable[[list[Message]], Sequence[Segment]], counts: TokenCounts
    ) -> None:
        """`render` returns the example of a conversation."""
        self.limits = limits
        self.render = render
        self.counts = counts
        self._known: tuple[list[Message], Sequence[Segment], Size] | None = None

    def example(self, conversation: list[Message]) -> Sequence[Segment]:
        """Return a conversation's example."""
        return self._look_at(conversation)[1]

    def measure(self, conversation: list[Message]) -> Size:
        """Return the size of a conversation's example."""
        return self._look_at(conversation)[2]

    def _look_at(self, conversation: list[Message]) -> tuple[list[Message], Sequence[Segment], Size]:
        """Return a conversation, its example and its size: known again of the last one asked for."""
        if self._known is None or self._known[0] is not conversation:
            segments = self.render(conversation)
            self._known = conversation, segments, measure(segments, self.counts)
        return self._known

    def cut(self, conversation: list[Message]) -> tuple[list[Message], list[str]] | None:
        """Return the shortened conversation and the kinds of cuts; None if no cut makes it short enough."""
        cuts: list[str] = []
        while self.limits.source_excess(self.measure(conversation)) > 0:
            end = _last_learned(conversation)
            # several user turns in a row ask one question: a round begins with the first of them
            starts = [
                i
                for i in range(end)
                if conversation[i].role == "user" and (i == 0 or conversation[i - 1].role != "user")
            ]
            if len(starts) < 2:
                break
            system = [message for message in conversation[: starts[1]] if message.role == "system"]
            conversation = [*system, *conversation[starts[1] :]]
            cuts.append("turns")
        conversation = self._cut_questions(conversation, cuts)
        conversation = self._cut_answers(conversation, cuts)
        return (conversation, cuts) if self.limits.is_met(self.measure(conversation)) else None

    def _cut_questions(self, conversation: list[Message], cuts: list[str]) -> list[Message]:
        """Return the conversation with the middle of its questions left out, the longest question first."""
        end = _last_learned(conversation)
        questions = [i for i in range(end) if conversation[i].role in ("user", "observation")]
        allowed = (self.limits.total or 0) // _QUESTION_SHARE
        for index in sorted(questions, key=lambda i: -len(conversation[i].content)):
            if self.limits.source_excess(self.measure(conversation)) <= 0:
                break
            text = conversation[index].content
            least = 1
            if self.limits.total is not None:
                # with one limit for all, some of the question stays while there is an answer to cut
                alone = self.counts.of_cuts(text)
                share = _Search(text, _middle, lambda part: self.counts(part) <= allowed)
                least = share.most(1, _Hole(alone, 0, allowed) if alone else None) or 1
            conversation = self._shorten(
                conversation, index, _middle, least, self.limits.source_excess, cuts, "question"
            )
        return conversation

    def _cut_answers(self, conversation: list[Message], cuts: list[str]) -> list[Message]:
        """Return the conversation with the ends of its answers left out.

        With one limit for all, the last answer is cut before the earlier ones. With two limits the earlier
        answers are part of the source, and are cut first.
        """
        end = _last_learned(conversation)
        earlier = [(i, self.limits.source_excess) for i in range(end) if conversation[i].role == "assistant"]
        last = [(end, self.limits.target_excess)]
        for index, excess in [*last, *earlier] if self.limits.total is not None else [*earlier, *last]:
            if excess(self.measure(conversation)) > 0:
                answer = conversation[index]
                # a thought in front of the answer stays whole: one that breaks off would never end
                least = len(answer.content) - len(answer.split_thought()[1]) + 1
                conversation = self._shorten(
                    conversation, index, lambda length, kept: (kept, length), least, excess, cuts, "answer"
                )
        return conversation

    def _shorten(
        self,
        conversation: list[Message],
        index: int,
        place: Callable[[int, int], tuple[int, int]],
        least: int,
        excess: Callable[[Size], int],
        cuts: list[str],
        kind: str,
    ) -> list[Message]:
        """Cut message `index` to the most characters that fit, `least` or more; return the conversation."""
        text = conversation[index].content

        def with_content(content: str) -> list[Message]:
            return [
                *conversation[:index],
                replace(conversation[index], content=content),
                *conversation[index + 1 :],
            ]

        if len(text) <= least:
            return conversation
        cuts.append(kind)
        search = _Search(text, place, lambda part: excess(self.measure(with_content(part))) <= 0)
        segments, size = self.example(conversation), self.measure(conversation)
        found = [index for index, segment in enumerate(segments) if text in segment.text]
        hole = None
        # the message's text must stand in the example as it is, and once
        if len(found) == 1 and is_plain_text(text) and segments[found[0]].text.count(text) == 1:
            written = segments[found[0]].text
            is_last = all(other.is_target for other in segments[found[0] :])
            less = Size(size.num_tokens - 1, size.num_target - is_last)
            if excess(less) == excess(size) - 1 and (cut := self.counts.of_cuts(written)):
                hole = _Hole(cut, written.index(text), len(cut.ids) - excess(size))
        return with_content(search.short(search.most(least, hole) or least))


def _middle(length: int, kept: int) -> tuple[int, int]:
    """Return from where to where a text loses its middle."""
    tail = kept // 2
    return kept - tail, length - tail


class _Hole(NamedTuple):
    """The text of an example that a message stands in."""

    cut: CutText
    offset: int
    """Characters of it in front of the message's."""
    most: int
    """Tokens that it may have."""


class _Search(NamedTuple):
    """A search for the most characters of a text with which a condition is met."""

    text: str
    place: Callable[[int, int], tuple[int, int]]
    """Maps the length of a text and the number of characters to keep to the place of those left out."""
    is_met: Callable[[str], bool]

    def short(self, kept: int) -> str:
        """Return the text with so many characters."""
        start, end = self.place(len(self.text), kept)
        return self.text[:start] + self.text[end:]

    def most(self, least: int, hole: _Hole | None) -> int | None:
        """Return the most characters, from `least` on, None if that is too many; a `hole` makes it quick."""
        plainly = partial(_most, least, len(self.text), lambda kept: self.is_met(self.short(kept)))
        if hole is None:
            return plainly()
        cut, offset, most = hole

        def is_met(kept: int) -> bool:
            start, end = self.place(len(self.text), kept)
            found = cut.is_within(most, offset + start, offset + end)
            return self.is_met(self.short(kept)) if found is None else found

        kept = _most(least, len(self.text), is_met)
        # the text that is chosen is encoded whole in any case: it must be as long as was told
        start, end = (offset + place for place in self.place(len(self.text), kept or least))
        count = cut.counts(cut.text[:start] + cut.text[end:])
        is_right = cut.count(start, end) in (None, count) and (count <= most) == (kept is not None)
        return kept if is_right and is_plain_text(self.short(kept or least)) else plainly()


def _most(low: int, high: int, is_met: Callable[[int], bool]) -> int | None:
    """Return the highest number that meets a condition, None if the lowest does not.

    A binary search: whatever is lower than a number that meets the condition must meet it too.
    """
    if not is_met(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_met(middle) else (low, middle - 1)
    return low


def _last_learned(conversation: Sequence[Message]) -> int:
    index = last_index(conversation, lambda message: message.role == "assistant" and message.loss)
    assert index is not None, "a conversation to cut has a learned answer"
    return index


def last_index(messages: Sequence[Message], is_wanted: Callable[[Message], bool]) -> int | None:
    """Return the index of the last message that is wanted, None if there is none."""
    return max((i for i, message in enumerate(messages) if is_wanted(message)), default=None)
