"""Tidies an answer's text as the official chats show it, whole or streamed.

Source: process_response in modeling_chatglm.py of https://huggingface.co/THUDM/chatglm-6b,
THUDM/chatglm2-6b and THUDM/chatglm3-6b.
"""

import re
from collections.abc import Callable

_FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_HALF_WIDTH = re.compile("(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")
_YEAR = "[[训练时间]]"
_UNSETTLED = re.compile(r"(?:[,!:;?]|\[(?:\[(?:训(?:练(?:时(?:间\]?)?)?)?)?)?)\Z")
"""Matches the end of a text that later text may still change: punctuation, a partial [[训练时间]]."""
_LONGEST_UNSETTLED = len(_YEAR) - 1
_WINDOW = 128
"""Characters of a growing text that are tidied again with each piece; at most about twice as many."""


def with_year(text: str) -> str:
    """Tidy ChatGLM3's and GLM-4's answer text as officially."""
    return text.replace(_YEAR, "2023年")


def process_chatglm2(response: str) -> str:
    """Tidy ChatGLM2's answer text as officially."""
    return with_year(response.strip())


def process_chatglm(response: str) -> str:
    """Tidy ChatGLM-6B's answer text as officially: punctuation next to a Chinese letter is full width."""
    return _HALF_WIDTH.sub(lambda mark: _FULL_WIDTH[mark.group()], process_chatglm2(response))


class ShownText:
    """`tidy` for a streamed text. Characters once shown never change."""

    def __init__(self, tidy: Callable[[str], str] | None) -> None:
        """`tidy`: a function of this module, or None to show the text as it is written."""
        self._tidy = tidy
        self._written = ""  # the end of the text: its beginning is dropped once it is settled
        self._num_shown = 0  # characters of the tidied `_written` that are shown

    def add(self, piece: str) -> str:
        """Return the text that the next piece adds to what is shown."""
        if self._tidy is None:
            return piece
        self._written += piece
        # the end that a later piece may change is kept back
        start = max(0, len(self._written) - _LONGEST_UNSETTLED)
        settled = self._written[:start] + _UNSETTLED.sub("", self._written[start:])
        new = self._show(self._tidy(settled))
        if len(self._written) > 2 * _WINDOW:
            self._shorten(self._tidy)
        return new

    def finish(self) -> str:
        """Return the end of the text that was kept back."""
        return self._show(self._tidy(self._written)) if self._tidy else ""

    def _show(self, tidied: str) -> str:
        new = tidied[self._num_shown :]
        self._num_shown += len(new)
        return new

    def _shorten(self, tidy: Callable[[str], str]) -> None:
        """Drop the beginning of `_written`, so that tidying a long text takes linear time."""
        text = self._written
        for cut in range(len(text) - _LONGEST_UNSETTLED, _WINDOW, -1):
            # between two ordinary letters nothing is tidied across the cut
            if not any(letter.isspace() or letter in ",!:;?" + _YEAR for letter in text[cut - 1 : cut + 1]):
                self._num_shown -= len(tidy(text[:cut]))
                self._written = text[cut:]
                return
