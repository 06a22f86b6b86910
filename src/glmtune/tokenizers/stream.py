"""The text of an answer while its ids come, in pieces that join to the text of all of them."""

from collections.abc import Callable

HALF_CHARACTER = "\ufffd"
NUM_CONTEXT_TOKENS = 8
"""So many ids are decoded again in front of the new ones, and at most about twice as many."""
NUM_CONTEXT_CHARACTERS = 12
"""As many characters they show at least, so that all behind them reads as it does behind the whole text."""


class TextStream:
    """`decode` of ids that are added one by one, each decoded a few times, however long the text is.

    Exact, for all that a decoder does is local. Where decoding begins amid the ids, other than the whole text
    reads at most the rest of a character (3 bytes), the space in front of a text, and the rest of a piece for
    white space (11 characters of `<|blank_80|>`).
    """

    def __init__(
        self, decode: Callable[[list[int]], str], count_open: Callable[[str], int] = lambda _: 0
    ) -> None:
        """`count_open`: how many last characters of a text may be others when more ids follow.

        Half a character is no matter of it: up to 3 bytes are kept back anyhow.
        """
        self._decode = decode
        self._count_open = count_open
        self._pieces: list[str] = []
        self._ids: list[int] = []  # the last of all
        self._tail = ""  # their text
        self._given = 0  # characters of the tail that are in pieces
        self._most = 2 * NUM_CONTEXT_TOKENS

    @property
    def text(self) -> str:
        """That of all ids so far, half a character at its end included."""
        return "".join(self._pieces) + self._tail[self._given :]

    def add(self, token: int) -> str:
        """What is new of the text; empty where it may be another with the ids that follow."""
        self._ids.append(token)
        tail = self._decode(self._ids)
        if self._is_silent(token, tail):
            self._ids.pop()
            return ""
        self._tail = tail
        piece = self._give(len(tail) - max(_count_half(tail), self._count_open(tail)))
        if len(self._ids) >= self._most:
            self._shorten()
        return piece

    def finish(self) -> str:
        """What was kept back."""
        return self._give(len(self._tail))

    def _give(self, end: int) -> str:
        piece = self._tail[self._given : end]
        if piece:
            self._pieces.append(piece)
            self._given = end
        return piece

    def _is_silent(self, token: int, tail: str) -> bool:
        """Whether an id shows nothing, and nothing else because of it: control tokens of ChatGLM2.

        Where no text is in front of it, or half a character, one may still matter: only the second is silent.
        """
        if tail != self._tail:
            return False
        if tail and not tail.endswith(HALF_CHARACTER):
            return True
        return self._ids[-2:] == [token, token] and not self._decode([token])

    def _shorten(self) -> None:
        context = self._ids[len(self._ids) // 2 :]
        head = self._decode(context)
        given = len(head) - (len(self._tail) - self._given)
        if given < NUM_CONTEXT_CHARACTERS:
            self._most = 2 * len(self._ids)
            return
        self._ids, self._tail, self._given = context, head, given
        self._most = 2 * NUM_CONTEXT_TOKENS


def _count_half(text: str) -> int:
    """Signs of half a character at the end, one for each of its bytes at most."""
    return min(3, len(text) - len(text.rstrip(HALF_CHARACTER)))
