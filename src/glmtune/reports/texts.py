"""Texts of pages and cards in both languages, and figures with their units."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from glmtune.files import read_text
from glmtune.strict import load_yaml

FILE = Path(__file__).with_name("texts.yaml")
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


class Text(NamedTuple):
    """A text in both languages."""

    en: str
    zh: str

    @classmethod
    def of(cls, words: object) -> "Text":
        """Return words that are the same in both languages, as a name or a figure."""
        return cls(str(words), str(words))


@cache
def all_texts() -> dict[str, Text]:
    """Return every text by its key."""
    return {key: Text(*pair) for key, pair in load_yaml(read_text(FILE)).items()}


def text(key: str, **values: object) -> Text:
    """Return the text of a key, the words in braces filled in. Raises `KeyError` for an unknown key."""
    return Text(*(words.format(**values) for words in all_texts()[key]))


def text_or_name(prefix: str, name: str) -> Text:
    """Return the text of `prefix` and a name from a file; the name itself if there is none."""
    key = f"{prefix}_{name.replace(' ', '_')}"
    return text(key) if key in all_texts() else Text.of(name)


def in_percent(share: float) -> str:
    """Return a share in percent, two digits of it: `150 %`, `0.012 %`."""
    return f"{float(f'{100 * share:.2g}'):,.15g} %"


def in_bytes(size: float) -> str:
    """Return bytes in their unit, `1.93 GiB`, `12.4 MiB` or `0.5 KiB`."""
    unit, scale = next((pair for pair in UNITS if size >= pair[1]), UNITS[-1])
    value = size / scale
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def in_time(seconds: float) -> str:
    """Return seconds as a clock shows them, `1:02:03` or `0:46`; below ten seconds `4.2 s`, for nan `–`."""
    if not seconds >= 10:
        return f"{seconds:.1f} s" if seconds == seconds else "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
