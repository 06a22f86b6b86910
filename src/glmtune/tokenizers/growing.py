"""The text of an answer while it grows: as decoding all of its ids at each token, with less work."""

from typing import Any

from glmtune.tokenizers.base import ChatTokenizer

NUM_CONTEXT_TOKENS = 32
"""So many tokens are decoded again in front of the new ones."""
NUM_CONTEXT_CHARACTERS = 24
"""What they must show at least: twice the longest piece for white space, `<|blank_80|>`."""


class GrowingText:
    """`decode` of ids that are added one by one.

    All that a decoder does is local: half characters, pieces that stand for white space, the space in front
    of a text. So behind enough tokens the rest decodes as it does behind all of them. Where that cannot be
    seen, more is decoded.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.text = ""
        """That of all ids so far."""
        self._decode: Any = tokenizer.decode  # type: ignore[attr-defined]  # transformers' own
        self._ids: list[int] = []  # of the tail: context, then what is not settled
        self._num_context = 0
        self._head = ""  # the context's text
        self._settled = ""  # all text up to where the context ends

    def add(self, token: int) -> str:
        """The whole text with one more id."""
        self._ids.append(token)
        tail = str(self._decode(self._ids))
        self.text = self._settled + tail[len(self._head) :]
        if len(self._ids) - self._num_context >= NUM_CONTEXT_TOKENS and not tail.endswith("\ufffd"):
            self._settle(tail)
        return self.text

    def _settle(self, tail: str) -> None:
        """Make the new tokens the context of those that follow, if they alone read as they do here."""
        context = self._ids[self._num_context :]
        head = str(self._decode(context))
        if len(head) >= NUM_CONTEXT_CHARACTERS and tail.endswith(head):
            self._ids, self._num_context = context, len(context)
            self._head, self._settled = head, self.text
