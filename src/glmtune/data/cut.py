"""Cut conversations that are longer than the limits: the one truncation rule of training and evaluation.

The oldest rounds go first, whole; then the middle of questions, then the ends of answers. Text is cut, before
it is encoded, never ids: no character is broken, and the chat format's own tokens stay whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from glmtune.errors import DataError
from glmtune.recipe.settings import DEFAULT_MAX_TOKENS, Data
from glmtune.templates import Message

_QUESTION_SHARE = 4
"""Questions keep at least `max_tokens` / 4 tokens each; what is still too long is taken from the answers."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """The token ids and labels of one training example."""

    ids: list[int]
    labels: list[int]
    num_target: int
    """Tokens of the last learned answer, with its end token."""

    @property
    def num_source(self) -> int:
        """Tokens before the last learned answer."""
        return len(self.ids) - self.num_target


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

    def is_source_met(self, example: EncodedExample) -> bool:
        """True if the tokens before the last answer (with a `total`: the whole example) are few enough."""
        return len(example.ids) <= self.total if self.total is not None else example.num_source <= self.source

    def is_target_met(self, example: EncodedExample) -> bool:
        """True if the last answer (with a `total`: the whole example) is short enough."""
        return len(example.ids) <= self.total if self.total is not None else example.num_target <= self.target

    def is_met(self, example: EncodedExample) -> bool:
        """True if the example needs no cut."""
        return self.is_source_met(example) and self.is_target_met(example)

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
        self,
        limits: Limits,
        encode: Callable[[list[Message]], EncodedExample],
        count: Callable[[str], int],
    ) -> None:
        """`encode` returns the example of a conversation, `count` the number of tokens of a text."""
        self.limits = limits
        self.encode = encode
        self.count = count

    def cut(self, unit: list[Message]) -> tuple[EncodedExample, list[str]] | None:
        """Return the shortened example and the kinds of cuts; None if it is too long even after every cut."""
        cuts: list[str] = []
        while not self.limits.is_source_met(self.encode(unit)):
            end = _last_learned(unit)
            # several user turns in a row ask one question: a round begins with the first of them
            starts = [
                i for i in range(end) if unit[i].role == "user" and (i == 0 or unit[i - 1].role != "user")
            ]
            if len(starts) < 2:
                break
            system = [message for message in unit[: starts[1]] if message.role == "system"]
            unit = [*system, *unit[starts[1] :]]
            cuts.append("turns")
        unit = self._cut_questions(unit, cuts)
        unit = self._cut_answers(unit, cuts)
        example = self.encode(unit)
        return (example, cuts) if self.limits.is_met(example) else None

    def _cut_questions(self, unit: list[Message], cuts: list[str]) -> list[Message]:
        """Return the unit with the middle of its questions left out, the longest question first."""
        end = _last_learned(unit)
        questions = [i for i in range(end) if unit[i].role in ("user", "observation")]
        allowed = (self.limits.total or 0) // _QUESTION_SHARE
        for index in sorted(questions, key=lambda i: -len(unit[i].content)):
            if self.limits.is_source_met(self.encode(unit)):
                break
            text = unit[index].content
            least = 1
            if self.limits.total is not None:
                # with one limit for all, some of the question stays while there is an answer to cut
                least = _most_characters(text, _without_middle, 1, lambda t: self.count(t) <= allowed) or 1
            unit = self._shorten(
                unit, index, _without_middle, least, self.limits.is_source_met, cuts, "question"
            )
        return unit

    def _cut_answers(self, unit: list[Message], cuts: list[str]) -> list[Message]:
        """Return the unit with the ends of its answers left out.

        With one limit for all, the last answer is cut before the earlier ones. With two limits the earlier
        answers are part of the source, and are cut first.
        """
        end = _last_learned(unit)
        earlier = [(i, self.limits.is_source_met) for i in range(end) if unit[i].role == "assistant"]
        last = [(end, self.limits.is_target_met)]
        for index, is_met in [*last, *earlier] if self.limits.total is not None else [*earlier, *last]:
            if not is_met(self.encode(unit)):
                answer = unit[index]
                # a thought in front of the answer stays whole: one that breaks off would never end
                least = len(answer.content) - len(answer.split_thought()[1]) + 1
                unit = self._shorten(unit, index, lambda text, n: text[:n], least, is_met, cuts, "answer")
        return unit

    def _shorten(
        self,
        unit: list[Message],
        index: int,
        shorten: Callable[[str, int], str],
        least: int,
        is_met: Callable[[EncodedExample], bool],
        cuts: list[str],
        kind: str,
    ) -> list[Message]:
        """Return the unit with message `index` cut to the most characters that fit, but at least `least`."""
        text = unit[index].content

        def with_content(content: str) -> list[Message]:
            return [*unit[:index], replace(unit[index], content=content), *unit[index + 1 :]]

        if len(text) <= least:
            return unit
        cuts.append(kind)
        fits = _most_characters(text, shorten, least, lambda part: is_met(self.encode(with_content(part))))
        return with_content(shorten(text, fits or least))


def _most_characters(
    text: str, shorten: Callable[[str, int], str], least: int, is_met: Callable[[str], bool]
) -> int | None:
    """Return the most characters, from `least` on, with which a shortened text meets a condition, else None.

    A binary search: whatever is shorter than a text that meets the condition must meet it too.
    """
    low, high = least, len(text)
    if not is_met(shorten(text, low)):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_met(shorten(text, middle)) else (low, middle - 1)
    return low


def _without_middle(text: str, count: int) -> str:
    """Return `count` characters of a text: its head and its tail."""
    if count >= len(text):
        return text
    tail = count // 2
    return text[: count - tail] + (text[-tail:] if tail else "")  # text[-0:] would be the whole text


def _last_learned(unit: Sequence[Message]) -> int:
    index = last_index(unit, lambda message: message.role == "assistant" and message.loss)
    assert index is not None, "a unit has a learned answer"
    return index


def last_index(messages: Sequence[Message], is_wanted: Callable[[Message], bool]) -> int | None:
    """Return the index of the last message that is wanted, None if there is none."""
    return max((i for i, message in enumerate(messages) if is_wanted(message)), default=None)
