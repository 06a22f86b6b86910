"""Rows of one question and one answer: rendered once, filled in for all of them.

A chat format puts the same tokens around every such row. They are learned from the format itself, by a row of
two marks; no format is described here a second time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmtune.templates import Message, Segment
from glmtune.tokenizers.protocol import Tokenizer

QUESTION, ANSWER = "\ue000question\ue001", "\ue000answer\ue001"
"""Marks of private-use characters, which stand for the two texts where a format is learned."""


def is_plain(messages: Sequence[Message]) -> bool:
    """True for a question and its learned answer, of two texts that every chat format writes as they are."""
    if len(messages) != 2:
        return False
    question, answer = messages
    return (
        question.role == "user"
        and answer.role == "assistant"
        and answer.loss
        and question.tools is None
        and answer.tools is None
        and answer.thought is None
        and not (question.metadata or answer.metadata or question.calls or answer.calls)
        and is_plain_text(question.content)
        and is_plain_text(answer.content)
    )


def is_plain_text(text: str) -> bool:
    """True for a text that every chat format writes as it is."""
    # some formats strip texts, leave out empty ones, and read `<think>`, `</think>` and `/nothink` in them
    if not text or text[0].isspace() or text[-1].isspace() or "think>" in text or "/nothink" in text:
        return False
    try:
        text.encode()  # fails for half a character, which the full way tells
    except UnicodeEncodeError:
        return False
    return True


class Piece(NamedTuple):
    """A part of a row: tokens that are the same in all rows, or one text with what the format adds to it."""

    ids: NDArray[np.int32]
    is_target: bool
    mark: str = ""
    """`QUESTION` or `ANSWER`; empty for tokens."""
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class PlainShape:
    """A chat format's training example of a question and its answer."""

    pieces: tuple[Piece, ...]
    segments: tuple[Segment, ...]
    """The example of the marks."""
    holes: tuple[tuple[int, Piece], ...]
    """The pieces of the two marks, and which segments they are."""

    @classmethod
    def learn(cls, tokenizer: Tokenizer, segments: Sequence[Segment]) -> "PlainShape | None":
        """Return the shape of an example rendered from the marks; None if one is not in it exactly once."""
        written = "".join(segment.text for segment in segments)
        if written.count(QUESTION) != 1 or written.count(ANSWER) != 1:
            return None
        pieces: list[Piece] = []
        holes = []
        for index, segment in enumerate(segments):
            found = [mark for mark in (QUESTION, ANSWER) if mark in segment.text]
            if len(found) > 1 or (found and segment.is_control):
                return None
            if found:
                before, _, after = segment.text.partition(found[0])
                pieces.append(Piece(np.empty(0, np.int32), segment.is_target, found[0], before, after))
                holes.append((index, pieces[-1]))
            else:
                ids = np.array(tokenizer.encode_segments([segment]), np.int32)
                if pieces and not pieces[-1].mark and pieces[-1].is_target == segment.is_target:
                    ids = np.concatenate([pieces.pop().ids, ids])
                pieces.append(Piece(ids, segment.is_target))
        return cls(tuple(pieces), tuple(segments), tuple(holes))

    def fill(self, messages: Sequence[Message]) -> list[Segment]:
        """Return the example of a plain row."""
        filled = list(self.segments)
        for index, hole in self.holes:
            text = messages[0 if hole.mark == QUESTION else 1].content
            filled[index] = Segment(hole.before + text + hole.after, is_target=hole.is_target)
        return filled

    def encode(
        self, tokenizer: Tokenizer, rows: Sequence[Sequence[Message]], known: dict[str, NDArray[np.int32]]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
        """Return what `conversation.encode_together` returns for these rows once they are rendered.

        The ids of their texts are added to `known`.
        """
        contents = {QUESTION: [row[0].content for row in rows], ANSWER: [row[1].content for row in rows]}
        holes = [hole for _, hole in self.holes]
        texts = [hole.before + text + hole.after for hole in holes for text in contents[hole.mark]]
        encoded = tokenizer.encode_texts(texts)
        known.update(zip(texts, encoded, strict=True))
        filled = iter([encoded[: len(rows)], encoded[len(rows) :]])
        columns = [next(filled) if piece.mark else [piece.ids] * len(rows) for piece in self.pieces]
        lengths = np.empty((len(rows), len(columns)), np.int64)
        for index, (piece, column) in enumerate(zip(self.pieces, columns, strict=True)):
            lengths[:, index] = list(map(len, column)) if piece.mark else len(piece.ids)
        targets = np.tile([piece.is_target for piece in self.pieces], len(rows))
        bounds = np.concatenate([[0], np.cumsum(lengths.sum(axis=1))])
        ids = np.concatenate(list(chain.from_iterable(zip(*columns, strict=True))))
        return ids, np.repeat(targets, lengths.ravel()), bounds
