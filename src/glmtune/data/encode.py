"""Conversations -> token ids and labels: what chat sends, its learned parts marked, cut where it is too long.

Texts are cut before they are encoded, never ids: no character is broken, the prefix and every role token
stay, and the token that ends an answer is always there and learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from glmtune.conversation import answer_text
from glmtune.data.cut import Cutter, Limits, Piece, last_index
from glmtune.data.example import Example
from glmtune.data.lengths import REFUSED_SHARE, LengthReport
from glmtune.data.official import IGNORED, Learned, find_encoding
from glmtune.data.row import Row
from glmtune.errors import DataError
from glmtune.families import require_template
from glmtune.recipe.settings import Data, TemplateName
from glmtune.templates import (
    Message,
    Segment,
    Taught,
    find,
    is_learned,
    training_examples,
    visible_text,
    with_question_prefix,
)
from glmtune.tokenizers import GlmTokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as ids, what it was cut from, and the answer to compare with."""

    ids: list[int]
    reference: str = ""
    uncut_tokens: int = 0
    cuts: tuple[str, ...] = ()
    """Kinds of cuts, as in a `LengthReport`."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of a file, and what was cut of them."""

    rows: list[Row]
    report: LengthReport


def encode_examples(tokenizer: GlmTokenizer, examples: Sequence[Example], settings: Data) -> Encoded:
    """Encode conversations for training, in the order given.

    A conversation gives one row; with ChatGLM-6B's and ChatGLM2's chat format one for each learned answer.
    Raises DataError for a row that the format cannot express, and as `settings.overlong` says.
    """
    limits = Limits.of(settings, tokenizer.context)
    report = LengthReport(limit=str(limits))
    encode = _encode_chat if settings.encoding == "chat" else _encode_official
    keeps_thoughts = settings.encoding == "chat" and find(_template(tokenizer)).learns_thoughts
    rows: list[Row] = []
    for example in examples:
        with _At(example.place):
            messages = _with_settings(example.messages, settings)
            if not keeps_thoughts:
                report.thoughts_lost += _count_lost_thoughts(tokenizer, messages)
            for ids, labels in encode(tokenizer, messages, settings, limits, report):
                rows.append(_row(ids, labels, example.place))
    _check(report, rows, settings, limits)
    return Encoded(rows, report)


def _count_lost_thoughts(tokenizer: GlmTokenizer, messages: Sequence[Message]) -> int:
    """How many learned answers have a thought that their format leaves out; refuse one that is no more.

    Tags inside an answer's text are text to a format that knows no thoughts.
    """
    chosen = find(_template(tokenizer))
    lost = 0
    for message in filter(is_learned, messages):
        thought, said = message.split_thought()
        if not thought.strip() or (message.thought is None and not chosen.thought_end):
            continue
        lost += 1
        if not (said.strip() or message.calls):
            raise DataError(
                f"an answer that is only a thought, which the chat format of {chosen.title} leaves out",
                hint="give it an answer, or take the row out",
            )
    return lost


def encode_prompts(
    tokenizer: GlmTokenizer, examples: Sequence[Example], settings: Data, *, num_new: int = 0
) -> tuple[list[Prompt], LengthReport]:
    """The prompt of each conversation's last answer, with that answer, and what was cut of the prompts.

    Where no setting names a limit, the model's context is to hold `num_new` tokens of an answer too. Raises
    DataError where there is no answer, or a prompt cannot be cut.
    """
    limits = Limits.of(settings, tokenizer.context, num_new=num_new)
    report = LengthReport(limit=f"{limits}, for the question part")
    prompts = []
    for example in examples:
        with _At(example.place):
            prompt = _prompt(tokenizer, _with_settings(example.messages, settings), settings, limits)
        report.add(prompt.uncut_tokens, len(prompt.ids), prompt.cuts)
        prompts.append(prompt)
    return prompts, report


def _prompt(tokenizer: GlmTokenizer, messages: Sequence[Message], settings: Data, limits: Limits) -> Prompt:
    if settings.encoding != "chat":
        return _official_prompt(tokenizer, messages, settings)
    last = last_index(messages, lambda message: message.role == "assistant")
    if last is None:
        raise DataError("no answer to compare with", hint="give every test row an answer")
    prompt = _cut_prompt(tokenizer, messages[:last], settings, limits)
    return replace(prompt, reference=_reference(tokenizer, messages[: last + 1]))


def _reference(tokenizer: GlmTokenizer, messages: Sequence[Message]) -> str:
    """The last turn as the model would say it without its thought; its calls as their format writes them.

    Encoded and decoded as an answer is: ChatGLM-6B's tokenizer makes full-width punctuation half width.
    """
    answer = messages[-1]
    segments = [Segment(answer.content)]
    if answer.is_call:
        before = tokenizer.segments(messages[:-1], add_generation_prompt=False)
        segments = tokenizer.segments(messages, add_generation_prompt=False)[len(before) + 1 :]
    said = answer_text(tokenizer, tokenizer.encode_segments(segments))
    return visible_text(_template(tokenizer), said)


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
    found = Taught.of(settings).begin(messages)
    # chat's format knows where the prefix goes; the thudm script's encoding sees to it itself
    return (
        found
        if settings.encoding in ("chat", "thudm")
        else with_question_prefix(found, settings.source_prefix)
    )


def _check(report: LengthReport, rows: Sequence[Row], settings: Data, limits: Limits) -> None:
    asks_leave = settings.overlong == "cut" and settings.encoding == "chat"
    if asks_leave and report.overlong_share > REFUSED_SHARE:
        raise DataError(
            f"data: {report.overlong_share:.0%} of {report.rows:,} rows are longer than {report.limit}",
            hint=f"{limits.raising} ({report.percentiles.most('the rows')}), or allow it with "
            "data.overlong=cut_any",
        )
    if report.rows and not rows:
        raise DataError(
            "data: no row is left: " + "; ".join(report.lines()),
            hint=f"{limits.raising}, or give rows with answers",
        )


# --- encoding chat ---


_IdsAndLabels = Iterator[tuple[list[int], list[int]]]


def _encode_chat(
    tokenizer: GlmTokenizer,
    messages: Sequence[Message],
    settings: Data,
    limits: Limits,
    report: LengthReport,
) -> _IdsAndLabels:
    units = list(_units(tokenizer, messages, settings))
    if not units:
        report.drop(0, "unlearned")
    for unit in units:
        uncut = _encode(tokenizer, unit, settings)
        size = len(uncut.ids)
        if not size:
            report.drop(0, "unlearned")
            continue
        if limits.is_met(uncut):
            report.add(size, size)
            yield uncut.ids, uncut.labels
            continue
        _refuse_overlong(settings, size, limits)
        shortened = None if settings.overlong == "drop" else _cutter(tokenizer, limits, settings).cut(unit)
        if shortened is None:
            report.drop(size, "overlong" if settings.overlong == "drop" else "uncuttable")
            continue
        piece, cuts = shortened
        report.add(size, len(piece.ids), cuts)
        yield piece.ids, piece.labels


def _refuse_overlong(settings: Data, size: int, limits: Limits, *, is_prompt: bool = False) -> None:
    if settings.overlong == "error":
        raise DataError(
            f"{size:,} tokens{' of the question part' if is_prompt else ''}, allowed is {limits}",
            hint=f"{limits.raising}, or set data.overlong to cut or drop",
        )


def _units(tokenizer: GlmTokenizer, messages: Sequence[Message], settings: Data) -> Iterator[list[Message]]:
    """Conversations that give one training example each, their `loss` flags set."""
    answers = [i for i, message in enumerate(messages) if message.role == "assistant" and message.loss]
    if settings.loss == "last_turn":
        last = last_index(messages, lambda message: message.role == "assistant")
        answers = [i for i in answers if i == last]
    if not find(_template(tokenizer)).splits_answers:
        flagged = [replace(message, loss=i in answers) for i, message in enumerate(messages)]
        yield flagged
        return
    for index in answers:
        yield [replace(m, loss=i == index) for i, m in enumerate(messages[: index + 1])]


def _template(tokenizer: GlmTokenizer) -> TemplateName:
    return require_template(tokenizer.template, tokenizer.vocab_file)


def _encode(tokenizer: GlmTokenizer, unit: Sequence[Message], settings: Data) -> Piece:
    """The training example of a unit; empty where nothing in it is learned."""
    examples = training_examples(
        _template(tokenizer),
        unit,
        assistant_name=tokenizer.assistant_name,
        source_prefix=settings.source_prefix,
    )
    segments = examples[0] if examples else ()
    ids: list[int] = []
    labels: list[int] = []
    num_target = 0
    for segment in segments:
        new = tokenizer.encode_segments([segment])
        ids += new
        labels += new if segment.is_target else [IGNORED] * len(new)
        num_target = num_target + len(new) if segment.is_target else 0
    return Piece(ids, labels, num_target)


def _cutter(tokenizer: GlmTokenizer, limits: Limits, settings: Data) -> Cutter:
    return Cutter(
        limits,
        lambda unit: _encode(tokenizer, unit, settings),
        lambda text: len(tokenizer.encode_plain(text)),
    )


def _cut_prompt(
    tokenizer: GlmTokenizer, messages: Sequence[Message], settings: Data, limits: Limits
) -> Prompt:
    """The prompt that asks for the next answer; its question part may fill the whole limit."""

    def encode(asked: Sequence[Message]) -> list[int]:
        return tokenizer.encode_segments(tokenizer.segments(asked, source_prefix=settings.source_prefix))

    source = limits.total if limits.total is not None else limits.source
    ids = encode(messages)
    if len(ids) <= source:
        return Prompt(ids, uncut_tokens=len(ids))
    _refuse_overlong(settings, len(ids), limits, is_prompt=True)
    cutter = Cutter(
        Limits(None, source, target=0),
        lambda unit: Piece(encode(unit[:-1]), [], 0),
        lambda text: len(tokenizer.encode_plain(text)),
    )
    found = cutter.cut([*messages, Message("assistant", "")])
    if found is None:
        raise DataError(
            f"the question part has {len(ids):,} tokens and cannot be cut to {source:,}",
            hint=f"{limits.raising}, or shorten the system message",
        )
    return Prompt(found[0].ids, uncut_tokens=len(ids), cuts=tuple(found[1]))


# --- the official scripts' encodings ---


def _encode_official(
    tokenizer: GlmTokenizer,
    messages: Sequence[Message],
    settings: Data,
    limits: Limits,
    report: LengthReport,
) -> _IdsAndLabels:
    row = find_encoding(settings.encoding, tokenizer).train(tokenizer, messages, settings)
    if row is None or all(label == IGNORED for label in row.labels):
        report.drop(row.uncut_tokens if row else 0, "unlearned")
        return
    cuts = _official_cuts(row)
    if cuts:
        _refuse_overlong(settings, row.uncut_tokens, limits)
    if cuts and settings.overlong == "drop":
        report.drop(row.uncut_tokens, "overlong")
        return
    report.add(row.uncut_tokens, len(row.input_ids), cuts)
    yield row.input_ids, row.labels


def _official_cuts(row: Learned) -> list[str]:
    return ["question"] * row.is_question_cut + ["answer"] * row.is_answer_cut


def _official_prompt(tokenizer: GlmTokenizer, messages: Sequence[Message], settings: Data) -> Prompt:
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
    text = str(tokenizer.decode(reference, skip_special_tokens=True)).strip()
    cuts = ("question",) * (len(last.prompt) < last.uncut_tokens)
    return Prompt(last.prompt, text, last.uncut_tokens, cuts)
