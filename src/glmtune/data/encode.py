"""Conversations -> token ids and labels: what chat sends, its learned parts marked, cut where it is too long.

Texts are cut before they are encoded, never ids: no character is broken, the prefix and every role token
stay, and the token that ends an answer is always there and learned.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from glmtune.data.example import Example
from glmtune.data.lengths import REFUSED_SHARE, LengthReport
from glmtune.data.official import IGNORED, Learned, find_encoding
from glmtune.errors import DataError
from glmtune.family import require_template
from glmtune.recipe.settings import Data, TemplateName
from glmtune.templates import Message, training_examples
from glmtune.tokenizers import GlmTokenizer

DEFAULT_MAX_TOKENS = 1024
_QUESTION_SHARE = 4
"""A question is cut to no less than this fraction of `max_tokens`; then it is the answer's turn."""


@dataclass(frozen=True, slots=True)
class Row:
    """A training row."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    """The ids to learn, -100 elsewhere; not shifted."""
    place: str
    """Where the conversation was read, like `train.jsonl:2`."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of a file, and what was cut of them."""

    rows: list[Row]
    report: LengthReport


def encode_examples(tokenizer: GlmTokenizer, examples: Sequence[Example], settings: Data) -> Encoded:
    """Encode conversations for training, in the order given.

    A conversation gives one row; with ChatGLM2's chat format one for each learned answer. Raises DataError
    for a row that the format cannot express, and as `settings.overlong` says.
    """
    limits = _Limits.of(settings)
    report = LengthReport(limit=str(limits))
    encode = _encode_chat if settings.encoding == "chat" else _encode_official
    rows: list[Row] = []
    for example in examples:
        with _At(example.place):
            messages = _with_settings(example.messages, settings)
            for ids, labels in encode(tokenizer, messages, settings, report):
                rows.append(_row(ids, labels, example.place))
    _check(report, rows, settings)
    return Encoded(rows, report)


def encode_prompt(tokenizer: GlmTokenizer, example: Example, settings: Data) -> tuple[list[int], str]:
    """The prompt of a conversation's last answer, and that answer to compare with.

    The question part is cut as in training. Raises DataError where there is no answer, or it cannot be cut.
    """
    with _At(example.place):
        messages = _with_settings(example.messages, settings)
        if settings.encoding != "chat":
            return _official_prompt(tokenizer, messages, settings)
        last = _last(messages, lambda message: message.role == "assistant")
        if last is None:
            raise DataError("no answer to compare with", hint="give every test row an answer")
        return _cut_prompt(tokenizer, messages[:last], settings), messages[last].content


class _At:
    """Puts the place of a row in front of what is wrong with it."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, DataError):
            raise DataError(f"{self.place}: {error}", hint=error.hint) from error


def _row(ids: Sequence[int], labels: Sequence[int], place: str) -> Row:
    return Row(np.asarray(ids, dtype=np.int32), np.asarray(labels, dtype=np.int32), place)


def _with_settings(messages: Sequence[Message], settings: Data) -> list[Message]:
    """The messages with the settings' system text and source prefix."""
    found = list(messages)
    if settings.system and not any(message.role == "system" for message in found):
        found.insert(0, Message("system", settings.system))
    first = next((i for i, message in enumerate(found) if message.role == "user"), None)
    # the thudm script puts its prefix in front of the whole prompt, not of the question
    if settings.source_prefix and settings.encoding != "thudm" and first is not None:
        found[first] = replace(found[first], content=settings.source_prefix + found[first].content)
    return found


def _check(report: LengthReport, rows: Sequence[Row], settings: Data) -> None:
    asks_leave = settings.overlong == "cut" and settings.encoding == "chat"
    if asks_leave and report.overlong_share > REFUSED_SHARE:
        raise DataError(
            f"data: {report.overlong_share:.0%} of {report.rows:,} rows are longer than {report.limit}",
            hint=f"raise the limit (95 % of the rows have at most {report.p95:,} tokens, 99 % at most "
            f"{report.p99:,}), or allow it with data.overlong=cut_any",
        )
    if report.rows and not rows:
        raise DataError(
            "data: no row is left: " + "; ".join(report.lines()),
            hint="raise the limit, or give rows with answers",
        )


# --- the limits ---


@dataclass(frozen=True, slots=True)
class _Piece:
    """A training example, encoded."""

    ids: list[int]
    labels: list[int]
    num_target: int
    """Tokens of the last learned answer, its end token included."""

    @property
    def num_source(self) -> int:
        return len(self.ids) - self.num_target


@dataclass(frozen=True, slots=True)
class _Limits:
    total: int | None
    source: int = 0
    target: int = 0

    @classmethod
    def of(cls, settings: Data) -> "_Limits":
        if settings.max_source_tokens is None or settings.max_target_tokens is None:
            return cls(settings.max_tokens or DEFAULT_MAX_TOKENS)
        return cls(None, settings.max_source_tokens, settings.max_target_tokens)

    def is_source_met(self, piece: _Piece) -> bool:
        return len(piece.ids) <= self.total if self.total is not None else piece.num_source <= self.source

    def is_target_met(self, piece: _Piece) -> bool:
        return len(piece.ids) <= self.total if self.total is not None else piece.num_target <= self.target

    def is_met(self, piece: _Piece) -> bool:
        return self.is_source_met(piece) and self.is_target_met(piece)

    def __str__(self) -> str:
        if self.total is not None:
            return f"max_tokens {self.total:,}"
        return f"max_source_tokens {self.source:,}, max_target_tokens {self.target:,}"


# --- encoding chat ---


_IdsAndLabels = Iterator[tuple[list[int], list[int]]]


def _encode_chat(
    tokenizer: GlmTokenizer, messages: Sequence[Message], settings: Data, report: LengthReport
) -> _IdsAndLabels:
    limits = _Limits.of(settings)
    units = list(_units(tokenizer, messages, settings))
    if not units:
        report.drop(0, "unlearned")
    for unit in units:
        uncut = _encode(tokenizer, unit)
        size = len(uncut.ids)
        if limits.is_met(uncut):
            report.add(size, size)
            yield uncut.ids, uncut.labels
            continue
        _refuse_overlong(settings, size, limits)
        shortened = None if settings.overlong == "drop" else _Cutter(tokenizer, limits).cut(unit)
        if shortened is None:
            report.drop(size, "overlong" if settings.overlong == "drop" else "uncuttable")
            continue
        piece, cuts = shortened
        report.add(size, len(piece.ids), cuts)
        yield piece.ids, piece.labels


def _refuse_overlong(settings: Data, size: int, limits: "_Limits | str") -> None:
    if settings.overlong == "error":
        raise DataError(
            f"{size:,} tokens, allowed is {limits}",
            hint="raise the limit, or set data.overlong to cut or drop",
        )


def _units(tokenizer: GlmTokenizer, messages: Sequence[Message], settings: Data) -> Iterator[list[Message]]:
    """Conversations that give one training example each, their `loss` flags set."""
    answers = [i for i, message in enumerate(messages) if message.role == "assistant" and message.loss]
    if settings.loss == "last_turn":
        last = _last(messages, lambda message: message.role == "assistant")
        answers = [i for i in answers if i == last]
    if _template(tokenizer) != "chatglm2":
        flagged = [replace(message, loss=i in answers) for i, message in enumerate(messages)]
        # some formats do not send a turn without content, so there may be nothing to learn in it
        if answers and training_examples(_template(tokenizer), flagged):
            yield flagged
        return
    for index in answers:
        yield [replace(m, loss=i == index) for i, m in enumerate(messages[: index + 1])]


def _template(tokenizer: GlmTokenizer) -> TemplateName:
    return require_template(tokenizer.template, tokenizer.vocab_file)


def _encode(tokenizer: GlmTokenizer, unit: Sequence[Message]) -> _Piece:
    (segments,) = training_examples(_template(tokenizer), unit, assistant_name=tokenizer.assistant_name)
    ids: list[int] = []
    labels: list[int] = []
    num_target = 0
    for segment in segments:
        new = tokenizer.encode_segments([segment])
        ids += new
        labels += new if segment.is_target else [IGNORED] * len(new)
        num_target = num_target + len(new) if segment.is_target else 0
    return _Piece(ids, labels, num_target)


class _Cutter:
    """Shortens one conversation: oldest turns whole, then the middle of questions, then ends of answers."""

    def __init__(self, tokenizer: GlmTokenizer, limits: _Limits) -> None:
        self.tokenizer = tokenizer
        self.limits = limits
        self.encode: Callable[[Sequence[Message]], _Piece] = lambda unit: _encode(tokenizer, unit)

    def cut(self, unit: list[Message]) -> tuple[_Piece, list[str]] | None:
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
        fits = _largest(
            1, len(text), lambda n: len(self.tokenizer.encode_plain(_without_middle(text, n))) <= allowed
        )
        return fits or 1

    def _cut_answers(self, unit: list[Message], cuts: list[str]) -> list[Message]:
        end = _last_learned(unit)
        earlier = [(i, self.limits.is_source_met) for i in range(end) if unit[i].role == "assistant"]
        last = [(end, self.limits.is_target_met)]
        for index, is_met in [*last, *earlier] if self.limits.total is not None else [*earlier, *last]:
            if not is_met(self.encode(unit)):
                unit = self._shorten(unit, index, _without_end, 1, is_met, cuts, "answer")
        return unit

    def _shorten(
        self,
        unit: list[Message],
        index: int,
        shorten: Callable[[str, int], str],
        least: int,
        is_met: Callable[[_Piece], bool],
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


def _without_oldest_round(unit: list[Message]) -> list[Message] | None:
    """The unit without its oldest question and what follows it; None for a single round. System stays."""
    end = _last_learned(unit)
    starts = [i for i in range(end) if unit[i].role == "user" and (i == 0 or unit[i - 1].role != "user")]
    if len(starts) < 2:
        return None
    return [*(message for message in unit[: starts[1]] if message.role == "system"), *unit[starts[1] :]]


def _last_learned(unit: Sequence[Message]) -> int:
    found = _last(unit, lambda message: message.role == "assistant" and message.loss)
    assert found is not None, "a unit has a learned answer"
    return found


def _last(messages: Sequence[Message], wanted: Callable[[Message], bool]) -> int | None:
    return max((i for i, message in enumerate(messages) if wanted(message)), default=None)


def _cut_prompt(tokenizer: GlmTokenizer, messages: Sequence[Message], settings: Data) -> list[int]:
    """The prompt that asks for the next answer, its question part cut as in training."""
    limits = _Limits.of(settings)
    source = limits.total if limits.total is not None else limits.source
    prompt = tokenizer.encode_segments(tokenizer.segments(messages))
    if len(prompt) <= source:
        return prompt
    _refuse_overlong(settings, len(prompt), f"{source:,} for the question part")
    asked = _PromptCutter(tokenizer, _Limits(None, source, target=0))
    found = asked.cut([*messages, Message("assistant", "")])
    if found is None:
        raise DataError(
            f"the question part has {len(prompt):,} tokens and cannot be cut to {source:,}",
            hint="raise the limit, or shorten the system message",
        )
    return found[0].ids


class _PromptCutter(_Cutter):
    """The same cuts for a prompt: its last message is the answer still to come."""

    def __init__(self, tokenizer: GlmTokenizer, limits: _Limits) -> None:
        super().__init__(tokenizer, limits)
        self.encode = lambda unit: _Piece(tokenizer.encode_segments(tokenizer.segments(unit[:-1])), [], 0)


# --- the official scripts' encodings ---


def _encode_official(
    tokenizer: GlmTokenizer, messages: Sequence[Message], settings: Data, report: LengthReport
) -> _IdsAndLabels:
    row = find_encoding(settings.encoding, tokenizer).train(tokenizer, messages, settings)
    if row is None or all(label == IGNORED for label in row.labels):
        report.drop(row.uncut_tokens if row else 0, "unlearned")
        return
    cuts = _official_cuts(row)
    if cuts:
        _refuse_overlong(settings, row.uncut_tokens, report.limit)
    if cuts and settings.overlong == "drop":
        report.drop(row.uncut_tokens, "overlong")
        return
    report.add(row.uncut_tokens, len(row.input_ids), cuts)
    yield row.input_ids, row.labels


def _official_cuts(row: Learned) -> list[str]:
    return ["question"] * row.is_question_cut + ["answer"] * row.is_answer_cut


def _official_prompt(
    tokenizer: GlmTokenizer, messages: Sequence[Message], settings: Data
) -> tuple[list[int], str]:
    # GLM-4's combined evaluation shows the model the answer, so its other form asks here
    uncombined = settings.model_copy(update={"combine": False})
    asked = find_encoding(settings.encoding, tokenizer).evaluate(tokenizer, messages, uncombined)
    num_answers = sum(message.role == "assistant" for message in messages)
    if not asked or (settings.encoding != "thudm" and len(asked) < num_answers):
        raise DataError(
            "the official evaluation leaves this row out: its question is empty or too long",
            hint="raise data.max_source_tokens, or take the row out",
        )
    last = asked[-1]
    reference = [index for index in last.reference if index != last.end]
    return last.prompt, str(tokenizer.decode(reference, skip_special_tokens=True)).strip()
