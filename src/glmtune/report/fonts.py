"""Which of this machine's fonts can write a text."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

USUAL = "DejaVu Sans"
"""Comes with matplotlib; has no Chinese."""
NO_LETTERS = "Last Resort"
"""Comes with matplotlib too; has a box for every character."""
LEFT_OUT = "…"
GET_A_FONT = "install a font that can, for Chinese on Debian and Ubuntu: apt-get install fonts-noto-cjk"


def find_families(texts: Sequence[str]) -> list[str] | None:
    """Font families that together can write the texts, the usual one first; None if no font here can."""
    letters = frozenset(ord(letter) for text in texts for letter in text if not letter.isspace())
    missing = _lacks(_usual_file(), letters)
    if not missing:
        return [USUAL]
    for font in _fonts():
        is_usable = not font.name.startswith(NO_LETTERS) and Path(font.fname).exists()
        if is_usable and not _lacks(font.fname, missing):
            return [USUAL, font.name]
    return None


def writable(text: str) -> str:
    """The text; where no font here can write all of it, with `…` for the letters that the usual one lacks."""
    if find_families([text]):
        return text
    missing = _lacks(_usual_file(), frozenset(map(ord, text)))
    return re.sub(f"{LEFT_OUT}+", LEFT_OUT, "".join(LEFT_OUT if ord(c) in missing else c for c in text))


def _fonts() -> list[Any]:
    """Every font of this machine, the plain ones first."""
    from matplotlib.font_manager import fontManager

    _add_new_fonts()
    return sorted(fontManager.ttflist, key=_is_plain, reverse=True)


@cache
def _add_new_fonts() -> None:
    """Tell matplotlib of the fonts that were installed after it had made its list of them."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {font.fname for font in fontManager.ttflist}
    for file in findSystemFonts():
        if file not in known:
            try:
                fontManager.addfont(file)
            except (OSError, RuntimeError, ValueError):  # no font that it can read
                continue


def _usual_file() -> str:
    from matplotlib.font_manager import findfont

    return str(findfont(USUAL))


def _lacks(path: str, letters: frozenset[int]) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    font = get_font(path)
    return frozenset(letter for letter in letters if not font.get_char_index(letter))


def _is_plain(font: Any) -> tuple[bool, bool, bool]:
    is_sans = any(word in font.name for word in ("Sans", "Hei"))  # 黑体
    return is_sans, font.style == "normal", font.weight == 400
