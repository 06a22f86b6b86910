"""Conversations -> token ids and labels: what chat sends, its learned parts marked, cut where it is too long.

Texts are cut before they are encoded, never ids: no character is broken, the prefix and every role token
stay, and the token that ends an answer is always there and learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from glmtune.conversation import encode_learned
from glmtune.data.cut import Cutter, Limits, Piece, last_index
from glmtune.data.example import Example, naming
from glmtune.data.lengths import REFUSED_SHARE, LengthReport
from glmtune.data.official import IGNORED, Learned, find_encoding
from glmtune.data.row import TrainingRow
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message, Taught, Template, is_learned
from glmtune.tokenizers.protocol import Tokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of a file, and what was cut of them."""

    rows: list[TrainingRow]
    report: LengthReport


def encode_examples(tokenizer: Tokenizer, examples: Sequence[Example], settings: Data) -> Encoded:
    """Encode conversations for training, in the order given.

    A conversation gives one row; with ChatGLM-6B's and ChatGLM2's chat format one for each learned answer.
    Raises DataError for a row that the format cannot express, and as `settings.overlong` says.
    """
    taught, limits = Taught.of(settings), Limits.of(settings, tokenizer.context)
    report = LengthReport(limit=str(limits))
    encode = _encode_chat if settings.encoding == "chat" else _encode_official
    keeps_thoughts = settings.encoding == "chat" and _format(tokenizer).learns_thoughts
    rows: list[TrainingRow] = []
    for example in examples:
        with naming(example.where):
            messages = taught.begin(example.messages)
            if not keeps_thoughts:
                report.thoughts_lost += _count_lost_thoughts(tokenizer, messages)
            for ids, labels in encode(tokenizer, messages, settings, limits, report):
                rows.append(_row(ids, labels, example))
    _check(report, rows, settings, limits)
    return Encoded(rows, report)


def _row(ids: Sequence[int], labels: Sequence[int], example: Example) -> TrainingRow:
    return TrainingRow(
        np.asarray(ids, dtype=np.int32),
        np.asarray(labels, dtype=np.int32),
        where=example.where,
        source=example.source,
    )


def _count_lost_thoughts(tokenizer: Tokenizer, messages: Sequence[Message]) -> int:
    """How many learned answers have a thought that their format leaves out; refuse one that is no more.

    Tags inside an answer's text are text to a format that knows no thoughts.
    """
    chosen = _format(tokenizer)
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


def _format(tokenizer: Tokenizer) -> Template:
    return tokenizer.chat_format


def _check(report: LengthReport, rows: Sequence[TrainingRow], settings: Data, limits: Limits) -> None:
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
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    settings: Data,
    limits: Limits,
    report: LengthReport,
) -> _IdsAndLabels:
    units = list(_units(tokenizer, messages, settings))
    if not units:
        report.drop(0, "unlearned")
    for unit in units:
        piece = _encode_unit(tokenizer, unit, settings, limits, report)
        if piece is not None:
            yield piece.ids, piece.labels


def _units(tokenizer: Tokenizer, messages: Sequence[Message], settings: Data) -> Iterator[list[Message]]:
    """Conversations that give one training example each, their `loss` flags set."""
    answers = [i for i, message in enumerate(messages) if is_learned(message)]
    if settings.loss == "last_turn":
        last = last_index(messages, lambda message: message.role == "assistant")
        answers = [i for i in answers if i == last]
    if not _format(tokenizer).splits_answers:
        yield [replace(message, loss=i in answers) for i, message in enumerate(messages)]
        return
    for index in answers:
        yield [replace(m, loss=i == index) for i, m in enumerate(messages[: index + 1])]


def _encode_unit(
    tokenizer: Tokenizer, unit: list[Message], settings: Data, limits: Limits, report: LengthReport
) -> Piece | None:
    """The example of a unit as the limits allow it, counted in the report; None for one that is dropped."""
    piece = _encode(tokenizer, unit, settings)
    size = len(piece.ids)
    if not size:
        report.drop(0, "unlearned")
        return None
    if limits.is_met(piece):
        report.add(size, size)
        return piece
    limits.refuse(size, settings)
    shortened = None if settings.overlong == "drop" else _cutter(tokenizer, limits, settings).cut(unit)
    if shortened is None:
        report.drop(size, "overlong" if settings.overlong == "drop" else "uncuttable")
        return None
    piece, cuts = shortened
    report.add(size, len(piece.ids), cuts)
    return piece


def _encode(tokenizer: Tokenizer, unit: Sequence[Message], settings: Data) -> Piece:
    """The training example of a unit; empty where nothing in it is learned."""
    examples = encode_learned(tokenizer, unit, source_prefix=settings.source_prefix)
    ids: list[int] = []
    labels: list[int] = []
    num_target = 0
    for new, is_target in examples[0] if examples else ():
        ids += new
        labels += new if is_target else [IGNORED] * len(new)
        num_target = num_target + len(new) if is_target else 0
    return Piece(ids, labels, num_target)


def _cutter(tokenizer: Tokenizer, limits: Limits, settings: Data) -> Cutter:
    return Cutter(
        limits,
        lambda unit: _encode(tokenizer, unit, settings),
        lambda text: len(tokenizer.encode_plain(text)),
    )


# --- the official scripts' encodings ---


def _encode_official(
    tokenizer: Tokenizer,
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
        limits.refuse(row.uncut_tokens, settings)
    if cuts and settings.overlong == "drop":
        report.drop(row.uncut_tokens, "overlong")
        return
    report.add(row.uncut_tokens, len(row.input_ids), cuts)
    yield row.input_ids, row.labels


def _official_cuts(row: Learned) -> list[str]:
    return ["question"] * row.is_question_cut + ["answer"] * row.is_answer_cut
