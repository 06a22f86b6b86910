"""The commands of a shell script, read and never run: variables, continued lines, and where those break.

A backslash continues a line only as its very last character, and a comment ends a command: what stands below
is then lost to it. Here it is read as it was meant, and said.
Source: https://www.gnu.org/software/bash/manual/bash.html, 3.1.2.1 and 3.1.3.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from glmtune.errors import ConfigError

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_NO_COMMENT = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|(?<=\S)#|[^#]|\\$)*""")
_CALLS = re.compile(r"\$\([^()]*\)|`[^`\n]*`")
_REDIRECTIONS = re.compile(r"(?<=\s)(?:\d|&)?[<>]>?\s*(?:&\d|[^\s;|&]+)")
_EXPANDED = re.compile(
    r"(?P<quoted>'[^']*')|(?P<escaped>\\.)"
    r"|\$\{(?P<name>\w+)(?::?[-=](?P<default>[^}]*))?\}|\$(?P<plain>[A-Za-z_]\w*|\d)"
)


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its words, and what was set for it or before it."""

    words: list[str]
    line: int
    """Its first line, from 1."""
    environment: dict[str, str]
    mended: list[str] = field(default_factory=list)
    """Where the shell would have ended it too early, a sentence each."""
    unset: frozenset[str] = frozenset()
    """Variables that it uses and nothing in the script sets; they stay as `$NAME`."""


def read_commands(text: str, where: str) -> list[Command]:
    """Every command of a script, its variables filled in. Raises ConfigError for an open quote."""
    variables: dict[str, str] = {}
    commands = []
    for number, line, mended in _whole_lines(text):
        expanded, unset = _expand(line, variables)
        for words in _split(expanded, f"{where}:{number}"):
            settings, rest = _assignments(words)
            if rest[:1] == ["export"]:
                settings |= _assignments(rest[1:])[0]
                rest = []
            if not rest:
                variables |= settings
                continue
            commands.append(Command(rest, number, variables | settings, mended, frozenset(unset)))
    return commands


def _whole_lines(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Lines with what continues them, comments left out: first line's number, text, what was mended."""
    parts: list[str] = []
    mended: list[str] = []
    start = 1
    for number, raw in enumerate(text.splitlines(), 1):
        if not parts:
            start = number
        part, goes_on, broken = _read_line(raw.rstrip("\r"), is_continued=bool(parts))
        if broken:
            mended.append(f"line {number}: {broken}, so the shell ends the command there: read on here")
        parts.append(part)
        if not goes_on:
            yield start, " ".join(parts), mended
            parts, mended = [], []
    if parts:
        yield start, " ".join(parts), mended


def _read_line(line: str, *, is_continued: bool) -> tuple[str, bool, str]:
    """A line's text, whether the next belongs to it, and what would keep the shell from seeing that."""
    found = _NO_COMMENT.match(line)
    body = found[0] if found else line
    comment, text = line[len(body) :], body.rstrip()
    if comment and not text:
        return "", is_continued, "a comment among the lines of a command" if is_continued else ""
    if text.endswith("\\"):
        broken = "a comment" if comment else ("a blank" if text != body else "")
        return text[:-1], True, broken and f"{broken} after the backslash"
    if comment.endswith("\\"):
        return text, True, "a comment before the backslash"
    return text, False, ""


def _expand(line: str, variables: Mapping[str, str]) -> tuple[str, set[str]]:
    """The line with the variables' values in it, and the names that have none."""
    unset: set[str] = set()

    def value(found: re.Match[str]) -> str:
        name = found["name"] or found["plain"]
        if name is None:
            return found[0]
        if name in variables:
            return variables[name]
        if found["default"] is not None:
            return found["default"].strip("\"'")
        unset.add(name)
        return f"${name}"

    line = _CALLS.sub(lambda found: re.sub(r"\s+", "_", found[0].replace("$", "\\$")), line)
    return _EXPANDED.sub(value, line), unset


def _split(line: str, where: str) -> Iterator[list[str]]:
    """The words of each command of a line; where its output goes is left out."""
    reader = shlex.shlex(_REDIRECTIONS.sub("", line), posix=True, punctuation_chars=";|&")
    reader.whitespace_split, reader.commenters = True, ""
    words: list[str] = []
    try:
        for word in reader:
            if word and set(word) <= set(";|&"):
                yield words
                words = []
            else:
                words.append(word)
    except ValueError as err:
        raise ConfigError(f"{where}: {str(err).lower()}", hint="close the quote in the script") from None
    if words:
        yield words


def _assignments(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The `NAME=value` words in front, and the rest."""
    settings = {}
    while words and _ASSIGNMENT.fullmatch(words[0]):
        name, _, value = words[0].partition("=")
        settings[name] = value
        words = words[1:]
    return settings, words
