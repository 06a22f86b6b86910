"""Which of this machine's fonts can write a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

USUAL = "DejaVu Sans"
"""Comes with matplotlib; has no Chinese."""
NO_LETTERS = "Last Resort"
"""Comes with matplotlib too; has a box for every character."""


def find_families(texts: Sequence[str]) -> list[str] | None:
    """Font families that together can write the texts, the usual one first; None if no font here can."""
    from matplotlib.font_manager import findfont, fontManager

    letters = frozenset(ord(letter) for text in texts for letter in text if not letter.isspace())
    missing = _lacks(findfont(USUAL), letters)
    if not missing:
        return [USUAL]
    for font in sorted(fontManager.ttflist, key=_is_plain, reverse=True):
        is_usable = not font.name.startswith(NO_LETTERS) and Path(font.fname).exists()
        if is_usable and not _lacks(font.fname, missing):
            return [USUAL, font.name]
    return None


def _lacks(path: str, letters: frozenset[int]) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    font = get_font(path)
    return frozenset(letter for letter in letters if not font.get_char_index(letter))


def _is_plain(font: Any) -> tuple[bool, bool, bool]:
    is_sans = any(word in font.name for word in ("Sans", "Hei"))  # 黑体
    return is_sans, font.style == "normal", font.weight == 400
