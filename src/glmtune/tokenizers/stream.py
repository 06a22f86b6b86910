"""Decode an answer while its ids come, into pieces of text that join to the text of all ids."""

from collections.abc import Callable

HALF_CHARACTER = "\ufffd"
NUM_CONTEXT_TOKENS = 8
"""Number of ids that are decoded again in front of each new id; up to about twice as many."""
NUM_CONTEXT_CHARACTERS = 12
"""The fewest characters of these ids, so that the text behind them reads as it does behind the whole text."""


class TextStream:
    """Decodes ids that are added one by one; each id is decoded a few times, however long the text is.

    Exact, because decoders work locally: where decoding starts amid the ids, only the start of the text can
    differ, by the rest of a character (3 bytes), the space in front of a text, and the rest of a piece for
    white space (11 characters of `<|blank_80|>`).
    """

    def __init__(
        self, decode: Callable[[list[int]], str], count_open: Callable[[str], int] = lambda _: 0
    ) -> None:
        """Start an empty text.

        count_open: counts the last characters of a text that further ids may change; half a character, up to
        3 bytes, is held back anyway.
        """
        self._decode = decode
        self._count_open = count_open
        self._pieces: list[str] = []
        self._ids: list[int] = []  # the last ids, decoded again with each new one
        self._tail = ""  # their text
        self._num_given = 0  # characters of the tail that are in pieces
        self._max_ids = 2 * NUM_CONTEXT_TOKENS

    @property
    def text(self) -> str:
        """Return the text of all ids so far, with half a character at its end."""
        return "".join(self._pieces) + self._tail[self._num_given :]

    def add(self, token: int) -> str:
        """Add an id and return the new text, without the end that further ids may change."""
        self._ids.append(token)
        tail = self._decode(self._ids)
        if tail == self._tail:
            # An id without text, as ChatGLM2's control tokens: drop it, or many would fill the context. At
            # the start, or behind half a character, a first one may still change what follows: keep that.
            is_behind_text = bool(tail) and not tail.endswith(HALF_CHARACTER)
            if is_behind_text or (self._ids[-2:] == [token, token] and not self._decode([token])):
                self._ids.pop()
                return ""
        self._tail = tail
        num_half = min(3, len(tail) - len(tail.rstrip(HALF_CHARACTER)))  # a sign for each of its bytes
        piece = self._give(len(tail) - max(num_half, self._count_open(tail)))
        if len(self._ids) >= self._max_ids:
            self._shorten()
        return piece

    def finish(self) -> str:
        """Return the text that was held back."""
        return self._give(len(self._tail))

    def _give(self, end: int) -> str:
        piece = self._tail[self._num_given : end]
        if piece:
            self._pieces.append(piece)
            self._num_given = end
        return piece

    def _shorten(self) -> None:
        """Drop the first half of the ids, if the rest shows enough text to go on from."""
        context = self._ids[len(self._ids) // 2 :]
        tail = self._decode(context)
        num_given = len(tail) - (len(self._tail) - self._num_given)
        if num_given < NUM_CONTEXT_CHARACTERS:
            self._max_ids = 2 * len(self._ids)
            return
        self._ids, self._tail, self._num_given = context, tail, num_given
        self._max_ids = 2 * NUM_CONTEXT_TOKENS
