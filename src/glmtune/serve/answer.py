"""One answer as it grows: ids to text, stop texts, thoughts, tool calls, and the reason of its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from glmtune.generate.requests import Token
from glmtune.generate.sampling import Likely
from glmtune.serve.errors import ApiError
from glmtune.serve.stops import StopTexts
from glmtune.templates.answer_stream import (
    AnswerPiece,
    AnswerStream,
    ArgumentsPiece,
    CallPiece,
    TextPiece,
)
from glmtune.tokenizers.protocol import Tokenizer

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class AddedText:
    """The text, thought and calls that one token has added to an answer."""

    index: int
    """Number of the answer among those to one question."""
    pieces: Sequence[AnswerPiece]
    drawn: tuple[int, Likely] | None = None
    """The token and its log-probabilities, if they were asked for and the token is no end."""
    reason: Reason | None = None
    """The reason of the end; None while it goes on."""
    stop: str | None = None
    """The stop text that ended it."""


class GrowingAnswer:
    """One answer, token by token."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        stream: AnswerStream | None,
        *,
        stops: Sequence[str] = (),
        is_one_call: bool = False,
    ) -> None:
        """`stream`: reads thoughts and calls; None for a text without a chat format.

        `is_one_call`: the answer ends with its first tool call.
        """
        self.index = index
        self.num_tokens = 0
        self.num_cached = 0
        """Tokens of the prompt that were kept from before."""
        self.num_thought_tokens = 0
        self._tokenizer = tokenizer
        self._text = tokenizer.text_stream()
        self._stop_ids = frozenset((*tokenizer.stop_ids, tokenizer.end_id))
        self._stops = StopTexts(stops)
        self._stream = stream
        # by id: text that only spells such a token has other ids, and stays text
        self._controls = {tokenizer.control_id(name): name for name in stream.control_names} if stream else {}
        self._is_one_call = is_one_call
        self._has_calls = False

    def take(self, token: Token) -> AddedText:
        """Return what a token adds; with a `reason` if the answer ends with it.

        Raises `ApiError` if a call whose first arguments are given has turned out to be none.
        """
        self.num_tokens += 1
        self.num_cached = token.num_cached
        # the control token that ends a thought is one of its own
        self.num_thought_tokens += self._stream is not None and self._stream.is_thought
        is_end = token.id in self._stop_ids
        drawn = None if token.likely is None or is_end else (token.id, token.likely)
        # the token of the end counts as written, but adds no text
        pieces = [] if is_end else self._read(token.id)
        is_called = bool(self._is_one_call and self._stream and self._stream.num_calls)
        if not (token.is_last or is_called or self._stops.found is not None):
            if self._stream and self._stream.is_broken:
                raise _broken()
            return AddedText(self.index, pieces, drawn)
        if not is_called:
            pieces += self._flush()
            pieces += self._note(self._stream.finish()) if self._stream else []
        # what was kept back may hold a stop text, or a call
        is_ended = is_end or is_called or self._stops.found is not None
        is_whole = not (self._stream and self._stream.is_broken)
        # a call that its limit or a stop text cuts is told by the reason; this one the model itself broke
        if is_end and not is_whole:
            raise _broken()
        reason: Reason = (
            "length" if not is_ended else "tool_calls" if self._has_calls and is_whole else "stop"
        )
        return AddedText(self.index, pieces, drawn, reason, self._stops.found)

    def _read(self, token: int) -> list[AnswerPiece]:
        name = self._controls.get(token)
        if name is None or self._stream is None:
            return self._parse(self._stops.add(self._text.add(token)))
        pieces = self._flush()
        # the bytes of a character do not go on behind a control token
        self._text = self._tokenizer.text_stream()
        # nothing follows a stop text
        return (
            pieces if self._stops.found is not None else pieces + self._note(self._stream.add_control(name))
        )

    def _flush(self) -> list[AnswerPiece]:
        """Return the text that was kept back."""
        text = self._stops.add(self._text.finish())
        return self._parse(text + self._stops.finish())

    def _parse(self, text: str) -> list[AnswerPiece]:
        if not text:
            return []
        return self._note(self._stream.add(text)) if self._stream else [TextPiece(text)]

    def _note(self, pieces: list[AnswerPiece]) -> list[AnswerPiece]:
        self._has_calls = self._has_calls or any(isinstance(piece, CallPiece) for piece in pieces)
        if not (self._is_one_call and self._stream and self._stream.num_calls):
            return pieces
        # one token may complete a call and begin text behind it
        parts = (CallPiece, ArgumentsPiece)
        first = [i for i, piece in enumerate(pieces) if isinstance(piece, parts) and piece.index == 0]
        return pieces[: max(first, default=-1) + 1]


def _broken() -> ApiError:
    """Return the error of a call that breaks off behind its first argument: nobody may carry it out."""
    return ApiError(500, "the model's tool call broke off: its arguments are incomplete", code="broken_call")
