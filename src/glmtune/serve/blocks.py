"""An answer as a list of blocks, each a thought, a text or a call: for interfaces that number them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from glmtune.templates.answer_stream import AnswerPiece, ArgumentsPiece, CallPiece

Event = dict[str, Any]


def merged(pieces: Iterable[AnswerPiece]) -> list[AnswerPiece]:
    """Return the pieces of an answer with those that go on with a thought, a text or a call joined to it."""
    blocks: list[AnswerPiece] = []
    for piece in pieces:
        last = blocks[-1] if blocks else None
        if isinstance(last, CallPiece) and isinstance(piece, ArgumentsPiece):
            blocks[-1] = replace(last, arguments=last.arguments + piece.text)
        elif last is None or isinstance(last, CallPiece) or not isinstance(piece, type(last)):
            blocks.append(piece)
        else:
            blocks[-1] = replace(last, text=last.text + piece.text)
    return blocks


class BlockEvents(ABC):
    """Writes the events of an answer that grows block by block."""

    def __init__(self) -> None:
        self.blocks: list[AnswerPiece] = []
        """The blocks so far; the last one may go on."""
        self._is_open = False

    def add(self, pieces: Iterable[AnswerPiece]) -> list[Event]:
        """Return the events of the next pieces."""
        events = []
        for piece in pieces:
            # one block if the piece goes on with the last one, two if it begins another
            joined = merged([*self.blocks[-1:], piece])
            if not self._is_open or len(joined) > 1:
                events += self.finish()
                self.blocks.append(piece)
                self._is_open = True
                events += self.begin(len(self.blocks) - 1, piece)
            else:
                self.blocks[-1] = joined[0]
            events += self.go_on(len(self.blocks) - 1, piece)
        return events

    def finish(self) -> list[Event]:
        """Return the events that end the open block."""
        if not self._is_open:
            return []
        self._is_open = False
        return self.end(len(self.blocks) - 1, self.blocks[-1])

    @abstractmethod
    def begin(self, index: int, piece: AnswerPiece) -> list[Event]:
        """Return the events that begin a block of the kind of its first piece."""

    @abstractmethod
    def go_on(self, index: int, piece: AnswerPiece) -> list[Event]:
        """Return the events of a piece of a block, the first one too."""

    @abstractmethod
    def end(self, index: int, block: AnswerPiece) -> list[Event]:
        """Return the events that end a block, given whole."""
