"""Encode conversations as training rows: the ids that chat sends, with labels on the answers.

A conversation that is too long is cut as text, before it is encoded: no character is broken, the prefix and
every role token stay, and the token that ends an answer is always there and learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from glmtune.conversation import encode_learned
from glmtune.data.cut import Cutter, EncodedExample, Limits, last_index
from glmtune.data.example import Example, naming_row
from glmtune.data.lengths import REFUSED_SHARE, LengthReport
from glmtune.data.official import IGNORED, find_encoding
from glmtune.data.row import TrainingRow
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message, Taught, is_learned
from glmtune.tokenizers.protocol import Tokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """The training rows of a file, and the report of their lengths and cuts."""

    rows: list[TrainingRow]
    report: LengthReport


def encode_examples(tokenizer: Tokenizer, examples: Sequence[Example], settings: Data) -> Encoded:
    """Encode conversations for training, in the order given.

    A conversation becomes one row; in the chat formats of ChatGLM-6B, ChatGLM2, GLM-Z1 and GLM-4.5 one row
    for each learned answer (`Template.splits_answers`).
    Raises DataError for a row that the format cannot express, and for rows longer than `settings.overlong`
    allows.
    """
    taught, limits = Taught.of(settings), Limits.of(settings, tokenizer.context)
    report = LengthReport(limit=str(limits))
    encode = _encode_chat if settings.encoding == "chat" else _encode_official
    keeps_thoughts = settings.encoding == "chat" and tokenizer.chat_format.learns_thoughts
    rows: list[TrainingRow] = []
    for example in examples:
        with naming_row(example.where):
            messages = taught.begin(example.messages)
            if not keeps_thoughts:
                report.thoughts_lost += _count_lost_thoughts(tokenizer, messages)
            for ids, labels in encode(tokenizer, messages, settings, limits, report):
                row = TrainingRow(
                    np.asarray(ids, dtype=np.int32),  # half of what int64 takes: all rows stay in memory
                    np.asarray(labels, dtype=np.int32),
                    where=example.where,
                    source=example.source,
                )
                rows.append(row)
    needs_consent = settings.overlong == "cut" and settings.encoding == "chat"
    if needs_consent and report.overlong_share > REFUSED_SHARE:
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
    return Encoded(rows, report)


def _count_lost_thoughts(tokenizer: Tokenizer, messages: Sequence[Message]) -> int:
    """Return the number of learned answers whose thought the chat format leaves out.

    Raises DataError for an answer that is a thought and nothing else.
    """
    chat_format = tokenizer.chat_format
    num_lost = 0
    for message in filter(is_learned, messages):
        thought, answer = message.split_thought()
        # to a format without thoughts, think tags inside an answer's text are plain text and stay
        if not thought.strip() or (message.thought is None and not chat_format.thought_end):
            continue
        num_lost += 1
        if not (answer.strip() or message.calls):
            raise DataError(
                f"an answer that is only a thought, which the chat format of {chat_format.title} leaves out",
                hint="give it an answer, or take the row out",
            )
    return num_lost


# --- encoding chat ---


_IdsAndLabels = Iterator[tuple[list[int], list[int]]]


def _encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    settings: Data,
    limits: Limits,
    report: LengthReport,
) -> _IdsAndLabels:
    """Yield ids and labels of each example, as the limits allow it, and count all of them in the report."""
    cutter = Cutter(
        limits,
        lambda unit: _encode(tokenizer, unit, settings),
        lambda text: len(tokenizer.encode_plain(text)),
    )
    answers = [i for i, message in enumerate(messages) if is_learned(message)]
    if settings.loss == "last_turn":
        last = last_index(messages, lambda message: message.role == "assistant")
        answers = [i for i in answers if i == last]
    units = [[replace(message, loss=i in answers) for i, message in enumerate(messages)]]
    if tokenizer.chat_format.splits_answers:
        # training shows a finished answer otherwise than a later prompt does: each answer becomes an example
        # of its own, with the conversation before it as context
        units = [
            [replace(message, loss=i == index) for i, message in enumerate(messages[: index + 1])]
            for index in answers
        ]
    if not units:
        report.drop(0, "unlearned")
    for unit in units:
        example = _encode(tokenizer, unit, settings)
        size = len(example.ids)
        if not size:
            report.drop(0, "unlearned")
            continue
        if limits.is_met(example):
            report.add(size, size)
            yield example.ids, example.labels
            continue
        limits.refuse(size, settings)
        shortened = None if settings.overlong == "drop" else cutter.cut(unit)
        if shortened is None:
            report.drop(size, "overlong" if settings.overlong == "drop" else "uncuttable")
            continue
        example, cuts = shortened
        report.add(size, len(example.ids), cuts)
        yield example.ids, example.labels


def _encode(tokenizer: Tokenizer, unit: Sequence[Message], settings: Data) -> EncodedExample:
    """Return the training example of a unit; it is empty if nothing in the unit is learned."""
    examples = encode_learned(tokenizer, unit, source_prefix=settings.source_prefix)
    ids: list[int] = []
    labels: list[int] = []
    num_target = 0
    for new, is_target in examples[0] if examples else ():
        ids += new
        labels += new if is_target else [IGNORED] * len(new)
        num_target = num_target + len(new) if is_target else 0  # counts anew behind each prompt part
    return EncodedExample(ids, labels, num_target)


# --- the official scripts' encodings ---


def _encode_official(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    settings: Data,
    limits: Limits,
    report: LengthReport,
) -> _IdsAndLabels:
    """Yield the official script's ids and labels, unless the settings refuse or drop what the script cuts."""
    row = find_encoding(settings.encoding, tokenizer).train(tokenizer, messages, settings)
    if row is None or all(label == IGNORED for label in row.labels):
        report.drop(row.uncut_tokens if row else 0, "unlearned")
        return
    cuts = ["question"] * row.is_question_cut + ["answer"] * row.is_answer_cut
    if cuts:
        limits.refuse(row.uncut_tokens, settings)
    if cuts and settings.overlong == "drop":
        report.drop(row.uncut_tokens, "overlong")
        return
    report.add(row.uncut_tokens, len(row.input_ids), cuts)
    yield row.input_ids, row.labels
