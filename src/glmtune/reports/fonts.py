"""Find the fonts of this machine that have the letters of a text."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

USUAL = "DejaVu Sans"
"""The font that comes with matplotlib; it has no Chinese."""
NO_LETTERS = "Last Resort"
"""A font that also comes with matplotlib; it has a box for every character."""
LEFT_OUT = "…"
"""Stands for letters that no font here has."""
GET_A_FONT = "install a font that can, for Chinese on Debian and Ubuntu: apt-get install fonts-noto-cjk"


def find_families(texts: Sequence[str]) -> list[str] | None:
    """Return font families that together have all letters of the texts, `USUAL` first; None if none do."""
    from matplotlib.font_manager import fontManager

    letters = frozenset(ord(letter) for text in texts for letter in text if letter.isprintable())
    missing = _lacks(_usual_file(), letters)
    if not missing:
        return [USUAL]
    _add_new_fonts()
    for font in sorted(fontManager.ttflist, key=_plainness, reverse=True):
        # matplotlib keeps its list of fonts on disk: one of them may be gone
        is_usable = not font.name.startswith(NO_LETTERS) and Path(font.fname).exists()
        if is_usable and not _lacks(font.fname, missing):
            return [USUAL, font.name]
    return None


def writable(text: str) -> str:
    """Return the text with blanks for control characters, and `…` for letters that `USUAL` lacks.

    Letters are left out only if no font here has them all.
    """
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    if find_families([text]):
        return text
    missing = _lacks(_usual_file(), frozenset(map(ord, text)))
    return re.sub(f"{LEFT_OUT}+", LEFT_OUT, "".join(LEFT_OUT if ord(c) in missing else c for c in text))


@cache
def _add_new_fonts() -> None:
    """Add to matplotlib's cached list the fonts installed since it was made."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {font.fname for font in fontManager.ttflist}
    for file in findSystemFonts():
        if file not in known:
            try:
                fontManager.addfont(file)
            except (OSError, RuntimeError, ValueError):  # not a font that matplotlib can read
                continue


def _usual_file() -> str:
    from matplotlib.font_manager import findfont

    return str(findfont(USUAL))


def _lacks(path: str, letters: frozenset[int]) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    font = get_font(path)
    return frozenset(letter for letter in letters if not font.get_char_index(letter))


def _plainness(font: "FontEntry") -> tuple[bool, bool, bool]:
    """Sort key: a plain upright sans-serif font of normal weight is the highest."""
    is_sans = any(word in font.name for word in ("Sans", "Hei"))  # 黑体
    return is_sans, font.style == "normal", font.weight == 400
