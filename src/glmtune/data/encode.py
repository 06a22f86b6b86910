"""Encode conversations as training rows: the ids that chat sends, with labels on the answers.

A conversation that is too long is cut as text, before it is encoded: no character is broken, the prefix and
every role token stay, and the token that ends an answer is always there and learned.
"""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmtune.conversation import encode_together, learned_segments
from glmtune.data.counts import TokenCounts
from glmtune.data.cut import Cutter, Limits, Size, last_index
from glmtune.data.example import Example, naming_row
from glmtune.data.lengths import REFUSED_SHARE, LengthReport
from glmtune.data.official import IGNORED, find_encoding
from glmtune.data.plain import ANSWER, QUESTION, PlainShape, is_plain
from glmtune.data.row import TrainingRow
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message, Segment, Taught, is_learned
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.values import text


@dataclass(frozen=True, slots=True)
class Encoded:
    """The training rows of a file, and the report of their lengths and cuts."""

    rows: list[TrainingRow]
    report: LengthReport


def encode_examples(tokenizer: Tokenizer, examples: Sequence[Example], settings: Data) -> Encoded:
    """Encode conversations for training, in the order given.

    A conversation becomes one row; in the chat formats of ChatGLM-6B, ChatGLM2, GLM-Z1 and GLM-4.5 one row
    for each learned answer (`Template.splits_answers`). Raises DataError for a row that the format cannot
    express, and for rows longer than `settings.overlong` allows.
    """
    limits = Limits.of(settings, tokenizer.context)
    report = LengthReport(limit=str(limits), most_tokens=limits.most)
    encode = _encode_chat if settings.encoding == "chat" else _encode_official
    # encoding makes no cycles of garbage, but millions of objects that Python would look through for some
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        rows = list(encode(tokenizer, examples, settings, limits, report))
    finally:
        if was_enabled:
            gc.enable()
    # a cut of most rows is more likely a wrong limit than a wish: `cut` refuses it, `cut_any` allows it
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


_CHUNK_CHARACTERS = 2**17
"""Characters of the conversations encoded together: enough for every thread, a few megabytes of ids."""


class _Rendered(NamedTuple):
    """A training example as the chat format writes it: no segments if nothing is learned in it."""

    example: Example
    conversation: list[Message] | None = None
    segments: Sequence[Segment] | None = None
    """None, as the conversation: a plain row, of the format's one shape."""


def _encode_chat(
    tokenizer: Tokenizer, examples: Sequence[Example], settings: Data, limits: Limits, report: LengthReport
) -> Iterator[TrainingRow]:
    """Yield the row of each training example, as the limits allow it, and count all of them in the report."""
    shape = _learn_shape(tokenizer, settings)

    def fill(messages: Sequence[Message]) -> Sequence[Segment]:
        if shape is not None and is_plain(messages):
            return shape.fill(messages)
        # a cut may leave white space at an end, which a format may leave out
        (conversation,) = training_conversations(tokenizer, Taught.of(settings).begin(messages), settings)
        return _segments(tokenizer, conversation, settings)

    for chunk in _render_chunks(tokenizer, examples, settings, shape, report):
        known: dict[str, NDArray[np.int32]] = {}
        ids, is_target, starts, ends = _encode_chunk(tokenizer, chunk, shape, known)
        labels, (num_tokens, num_target) = _labels(ids, is_target), _sizes(is_target, starts, ends)
        rows: list[TrainingRow | None] = [
            TrainingRow(ids[start:end], labels[start:end], row.example.where, row.example.source)
            for row, start, end in zip(chunk, starts.tolist(), ends.tolist(), strict=True)
        ]
        report.lengths += num_tokens.tolist()
        counts = TokenCounts(tokenizer, known)
        cutters = {}
        for index in np.flatnonzero(limits.exceeded(num_tokens, num_target) | (num_tokens == 0)).tolist():
            rows[index] = None
            size = Size(int(num_tokens[index]), int(num_target[index]))
            example, conversation, _ = chunk[index]
            with naming_row(example.where):
                if _may_be_cut(size, limits, settings, report):
                    whole, render = list(example.messages), fill
                    if conversation is not None:
                        whole, render = conversation, partial(_segments, tokenizer, settings=settings)
                    cutters[index] = Cutter(limits, render, counts, whole, size)
        for index, row in _cut_together(tokenizer, chunk, cutters, known, report):
            rows[index] = row
        yield from filter(None, rows)


def _labels(ids: NDArray[np.int32], is_target: NDArray[np.bool_]) -> NDArray[np.int32]:
    return np.where(is_target, ids, np.int32(IGNORED))


def _sizes(
    is_target: NDArray[np.bool_], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens of training examples, and those of their last learned answers."""
    # the last answer of a row begins behind its last token that is no target; -1: all so far are targets
    unlearned = np.concatenate([[-1], np.flatnonzero(~is_target)])
    last = unlearned[np.searchsorted(unlearned, ends) - 1]
    return ends - starts, ends - np.maximum(last + 1, starts)


def _may_be_cut(size: Size, limits: Limits, settings: Data, report: LengthReport) -> bool:
    """Return whether an example of too many or no tokens is to be cut; count it if it is left out."""
    if not size.num_tokens:
        report.drops["unlearned"] += 1
        return False
    limits.refuse(size.num_tokens, settings)
    if settings.overlong == "drop":
        report.drops["overlong"] += 1
        return False
    return True


def _cut_together(
    tokenizer: Tokenizer,
    chunk: Sequence[_Rendered],
    cutters: dict[int, Cutter],
    known: dict[str, NDArray[np.int32]],
    report: LengthReport,
) -> Iterator[tuple[int, TrainingRow]]:
    """Yield the rows of a chunk that are cut, each with its index in it, and count them in the report."""
    uncut = {index: cutter.size.num_tokens for index, cutter in cutters.items()}
    while cutters:
        examples = {}
        for index, cutter in cutters.items():
            with naming_row(chunk[index].example.where):
                if cutter.shorten():
                    examples[index] = cutter.example
                else:
                    report.drops["uncuttable"] += 1
        ids, is_target, bounds = encode_together(tokenizer, list(examples.values()), known)
        labels, starts, ends = _labels(ids, is_target), bounds[:-1], bounds[1:]
        too_long = {}
        for index, start, end, *size in zip(
            examples, starts, ends, *_sizes(is_target, starts, ends), strict=True
        ):
            cutter, example = cutters[index], chunk[index].example
            cutter.size = Size(*map(int, size))
            if cutter.limits.is_met(cutter.size):
                report.add_cut(uncut[index] - cutter.size.num_tokens, cutter.cuts)
                yield index, TrainingRow(ids[start:end], labels[start:end], example.where, example.source)
            else:
                too_long[index] = cutter
        cutters = too_long


def _learn_shape(tokenizer: Tokenizer, settings: Data) -> PlainShape | None:
    """Return what the chat format writes around one question and its answer; None if it cannot be told."""
    marks = [Message("user", QUESTION), Message("assistant", ANSWER)]
    try:
        conversations = training_conversations(tokenizer, Taught.of(settings).begin(marks), settings)
        examples = [_segments(tokenizer, conversation, settings) for conversation in conversations]
    except DataError:
        return None  # such as a system text in a format without one: told for the first row that is read
    return PlainShape.learn(tokenizer, examples[0]) if len(examples) == 1 else None


def _encode_chunk(
    tokenizer: Tokenizer,
    chunk: Sequence[_Rendered],
    shape: PlainShape | None,
    known: dict[str, NDArray[np.int32]],
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Return all ids, a mask of the targets, and the start and end of each training example in both.

    The ids of all texts are added to `known`.
    """
    rendered = [example.segments for example in chunk if example.segments is not None]
    ids, is_target, bounds = encode_together(tokenizer, rendered, known)
    if shape is None or len(rendered) == len(chunk):
        return ids, is_target, bounds[:-1], bounds[1:]
    plain = [row.example.messages for row in chunk if row.segments is None]
    plain_ids, plain_targets, plain_bounds = shape.encode(tokenizer, plain, known)
    # the rendered ones stand before the plain ones
    is_plain = np.array([row.segments is None for row in chunk])
    starts, ends = np.empty((2, len(chunk)), np.int64)
    for where, own in ((~is_plain, bounds), (is_plain, len(ids) + plain_bounds)):
        starts[where], ends[where] = own[:-1], own[1:]
    return np.concatenate([ids, plain_ids]), np.concatenate([is_target, plain_targets]), starts, ends


def _render_chunks(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    settings: Data,
    shape: PlainShape | None,
    report: LengthReport,
) -> Iterator[list[_Rendered]]:
    """Yield the training examples of the conversations, a few hundred at once."""
    taught, keeps_thoughts = Taught.of(settings), tokenizer.chat_format.learns_thoughts
    chunk: list[_Rendered] = []
    num_characters = 0
    for example in examples:
        if shape is not None and is_plain(example.messages):
            num_characters += len(example.messages[0].content) + len(example.messages[1].content)
            chunk.append(_Rendered(example))
        else:
            try:
                with naming_row(example.where):
                    messages = taught.begin(example.messages)
                    if not keeps_thoughts:
                        report.thoughts_lost += _count_lost_thoughts(tokenizer, messages)
                    for conversation in training_conversations(tokenizer, messages, settings):
                        segments = _segments(tokenizer, conversation, settings)
                        written = "".join([segment.text for segment in segments])
                        text(written, "text")  # raises for half a character
                        num_characters += len(written)
                        chunk.append(_Rendered(example, conversation, segments))
            except DataError:
                yield chunk  # the error of an earlier row is the one to tell
                raise
        if num_characters > _CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    yield chunk


def training_conversations(
    tokenizer: Tokenizer, messages: Sequence[Message], settings: Data
) -> Sequence[list[Message]]:
    """Return the conversations that become a training example each, what is learned in them marked."""
    answers = [i for i, message in enumerate(messages) if is_learned(message)]
    if settings.loss == "last_turn":
        last = last_index(messages, lambda message: message.role == "assistant")
        answers = [i for i in answers if i == last]
        messages = [
            replace(message, loss=i in answers) if is_learned(message) else message
            for i, message in enumerate(messages)
        ]
    if not tokenizer.chat_format.splits_answers:
        return [list(messages)]
    # training shows a finished answer otherwise than a later prompt does: each answer becomes an example
    # of its own, with the conversation before it as context
    if len(answers) == 1:
        return [list(messages[: answers[0] + 1])]
    return [
        [
            replace(message, loss=i == index) if is_learned(message) else message
            for i, message in enumerate(messages[: index + 1])
        ]
        for index in answers
    ] or [[]]


def _segments(tokenizer: Tokenizer, conversation: Sequence[Message], settings: Data) -> Sequence[Segment]:
    """Return the training example of a conversation; it is empty if no answer is learned."""
    examples = learned_segments(tokenizer, conversation, source_prefix=settings.source_prefix)
    return examples[0] if examples else ()


# --- the official scripts' encodings ---


def _encode_official(
    tokenizer: Tokenizer, examples: Sequence[Example], settings: Data, limits: Limits, report: LengthReport
) -> Iterator[TrainingRow]:
    """Yield the official script's rows, unless the settings refuse or drop what the script cuts."""
    taught, encoding = Taught.of(settings), find_encoding(settings.encoding, tokenizer)
    for example in examples:
        with naming_row(example.where):
            messages = taught.begin(example.messages)
            report.thoughts_lost += _count_lost_thoughts(tokenizer, messages)
            row = encoding.train(tokenizer, messages, settings)
            if row is None or all(label == IGNORED for label in row.labels):
                report.lengths.append(row.uncut_tokens if row else 0)
                report.drops["unlearned"] += 1
                continue
            cuts = ["question"] * row.is_question_cut + ["answer"] * row.is_answer_cut
            if cuts:
                limits.refuse(row.uncut_tokens, settings)
        report.lengths.append(row.uncut_tokens)
        if cuts and settings.overlong == "drop":
            report.drops["overlong"] += 1
            continue
        if cuts:
            report.add_cut(row.uncut_tokens - len(row.input_ids), cuts)
        ids, labels = (np.array(values, dtype=np.int32) for values in (row.input_ids, row.labels))
        yield TrainingRow(ids, labels, example.where, example.source)
