"""The table of known messages, `messages.toml`: signs, causes and cures, in English and Chinese."""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from glmtune.language import LANGUAGES

MESSAGES = Path(__file__).with_name("messages.toml")
Kind = Literal["cause", "symptom", "consequence"]
KINDS: tuple[Kind, ...] = ("cause", "symptom", "consequence")
"""In the order in which they are told: an error, a run that is in vain, the report of another's error."""
GAP = 300
"""Most characters that `...` stands for: without a limit, an endless line would be searched for hours."""
LATER = 4000
"""Characters between two lines of a sign; a traceback from the model's code to its end has some 3,000."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The texts about a message in one language; commands and foreign names stand in backticks."""

    title: str
    cause: str
    there: str
    """The cure in the program that gave the message."""
    here: str
    """The same in glmtune, above `commands`."""


@dataclass(frozen=True, slots=True)
class KnownMessage:
    """A row of the table."""

    name: str
    signs: tuple[str, ...]
    """Parts of the message, any of which tells it, as the program writes them.

    `...` stands for anything in the line, `^` and `$` for its ends, and a line break for some lines between.
    """
    commands: tuple[str, ...]
    """Commands to type here; MODEL, FILE, RUN and the like stand for the reader's own."""
    link: str
    """An address with more, or a guide of glmtune's."""
    en: Wording
    zh: Wording
    kind: Kind = "cause"


@cache
def known_messages() -> dict[str, KnownMessage]:
    """Return the table by name. Of two rows that a line fits, the first explains it."""
    with MESSAGES.open("rb") as file:
        rows = tomllib.load(file)
    return {
        name: KnownMessage(
            **row  # a key that is no field is an error
            | {"name": name, "signs": tuple(row["signs"]), "commands": tuple(row["commands"])}
            | {language: Wording(**row[language]) for language in LANGUAGES}
        )
        for name, row in rows.items()
    }


class Sign(NamedTuple):
    """A sign as a pattern, and two texts in whatever it matches: to look for those first spares searches."""

    pattern: re.Pattern[str]
    """Group 1 is the sign's last line. A blank may be a line break: rich wraps the end of a traceback."""
    part: str
    """The longest text without `...`, which stands in a message that is not wrapped."""
    word: str
    """The longest text without a blank, which stands in any."""


@cache
def compiled_signs() -> dict[str, tuple[Sign, ...]]:
    """Return the signs of each row."""
    return {name: tuple(map(_compile, row.signs)) for name, row in known_messages().items()}


def _compile(sign: str) -> Sign:
    starts, ends = sign.startswith("^"), sign.endswith("$")
    lines = sign[starts : len(sign) - ends].split("\n")
    parts = [part for line in lines for part in line.split("...")]
    escaped = [
        re.escape(line).replace(r"\ ", r"[ \n]").replace(r"\.\.\.", rf"[^\r\n]{{0,{GAP}}}?") for line in lines
    ]
    *before, last = escaped
    text = "".join(rf"{line}[\s\S]{{0,{LATER}}}?" for line in before) + f"({last})"
    begin, end = r"(?:\A|(?<=[\r\n]))" if starts else "", r"(?=[\r\n]|\Z)" if ends else ""
    word = max(" ".join(parts).split(" "), key=len)
    return Sign(re.compile(begin + text + end), max(parts, key=len), word)
