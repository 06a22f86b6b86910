"""An answer's text as the official chats show it, whole and while it grows.

Source: process_response in modeling_chatglm.py of https://huggingface.co/THUDM/chatglm-6b,
THUDM/chatglm2-6b and THUDM/chatglm3-6b.
"""

import re
from collections.abc import Callable

_FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_HALF_WIDTH = re.compile("(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")
_YEAR = "[[训练时间]]"
_UNSETTLED = re.compile(r"(?:[,!:;?]|\[(?:\[(?:训(?:练(?:时(?:间\]?)?)?)?)?)?)\Z")
"""An end of a text that is tidied otherwise when more follows: punctuation, a begun [[训练时间]]."""
_LONGEST_UNSETTLED = len(_YEAR) - 1
_WINDOW = 128
"""Characters that are tidied again with each piece, and at most about twice as many."""


def with_year(text: str) -> str:
    """ChatGLM3's and GLM-4's answer text, tidied as officially."""
    return text.replace(_YEAR, "2023年")


def process_chatglm2(response: str) -> str:
    """ChatGLM2's answer text, tidied as officially."""
    return with_year(response.strip())


def process_chatglm(response: str) -> str:
    """ChatGLM-6B's answer text, tidied as officially: punctuation beside a Chinese letter is full width."""
    return _HALF_WIDTH.sub(lambda found: _FULL_WIDTH[found.group()], process_chatglm2(response))


class ShownText:
    """`tidy` of a text that comes in pieces; what has been shown stays, whatever follows."""

    def __init__(self, tidy: Callable[[str], str] | None) -> None:
        """`tidy`: of this module, or None where a text is shown as it is written."""
        self._tidy = tidy
        self._written = ""  # the last of it
        self._given = 0  # characters of that, tidied, which are shown

    def add(self, piece: str) -> str:
        """What is new to show."""
        if self._tidy is None:
            return piece
        self._written += piece
        new = self._give(self._tidy(_settled(self._written)))
        if len(self._written) > 2 * _WINDOW:
            self._shorten(self._tidy)
        return new

    def finish(self) -> str:
        """What was kept back."""
        return self._give(self._tidy(self._written)) if self._tidy else ""

    def _give(self, shown: str) -> str:
        new = shown[self._given :]
        self._given += len(new)
        return new

    def _shorten(self, tidy: Callable[[str], str]) -> None:
        """Let go of a beginning; at a place between two letters nothing is tidied across it."""
        text = self._written
        for cut in range(len(text) - _LONGEST_UNSETTLED, _WINDOW, -1):
            if not any(letter.isspace() or letter in ",!:;?" + _YEAR for letter in text[cut - 1 : cut + 1]):
                self._given -= len(tidy(text[:cut]))
                self._written = text[cut:]
                return


def _settled(text: str) -> str:
    """A text without an end that would be tidied otherwise when more follows."""
    start = max(0, len(text) - _LONGEST_UNSETTLED)
    return text[:start] + _UNSETTLED.sub("", text[start:])
