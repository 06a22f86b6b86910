"""Parse the commands of a shell script, with its variables and continued lines, without running it.

A backslash continues a line only as its very last character, and a comment ends a command: the shell loses
the flags below. Such a command is read as it was meant, with a sentence on what was mended.
Source: https://www.gnu.org/software/bash/manual/bash.html, 3.1.2.1 and 3.1.3.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from glmtune.errors import ConfigError

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
# a line up to its comment: a # inside quotes, escaped, or within a word ($#, a#b) begins none
_NO_COMMENT = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|(?<=\S)#|[^#]|\\$)*""")
# $(command) and `command`, whose output nobody knows
_CALLS = re.compile(r"\$\([^()]*\)|`[^`\n]*`")
# `> log`, `2>&1`, `&> log`
_REDIRECTIONS = re.compile(r"(?<=\s)(?:\d|&)?[<>]>?\s*(?:&\d|[^\s;|&]+)")
# no variable in single quotes or after a backslash; $NAME, ${NAME}, ${NAME:-default}, and arguments $1
_EXPANDED = re.compile(
    r"(?P<quoted>'[^']*')|(?P<escaped>\\.)"
    r"|\$\{(?P<name>\w+)(?::?[-=](?P<default>[^}]*))?\}|\$(?P<plain>[A-Za-z_]\w*|\d)"
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a script: its words and its environment."""

    words: list[str]
    line: int
    """Number of its first line, from 1."""
    environment: dict[str, str]
    """Variables set before the command or in front of it."""
    mended: list[str] = field(default_factory=list)
    """Places where the shell would end the command too early, a sentence each."""
    unset: frozenset[str] = frozenset()
    """Variables used but set nowhere in the script; they stay in the words as `$NAME`."""


def read_commands(text: str, where: str) -> list[Command]:
    """Return the commands of a script with variables expanded. Raises ConfigError for an open quote."""
    variables: dict[str, str] = {}
    commands = []
    for number, line, mended in _whole_lines(text):
        expanded, unset = _expand(line, variables)
        for words in _split(expanded, f"{where}:{number}"):
            settings, rest = _assignments(words)
            if rest[:1] == ["export"]:
                settings |= _assignments(rest[1:])[0]
                rest = []
            if not rest:  # assignments alone hold for all later commands
                variables |= settings
                continue
            commands.append(Command(rest, number, variables | settings, mended, frozenset(unset)))
    return commands


def _whole_lines(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Yield each command line, continued lines joined: its first line's number, its text, what was mended."""
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
    """Split off a line's comment and backslash.

    Returns the text, True if the next line belongs to it, and the fault that ends the command for the shell.
    """
    match = _NO_COMMENT.match(line)
    body = match[0] if match else line
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
    """Expand the variables of a line; returns also the names that have no value."""
    unset: set[str] = set()

    def value(match: re.Match[str]) -> str:
        name = match["name"] or match["plain"]
        if name is None:  # quoted or escaped: as it stands, shlex takes the quotes off
            return match[0]
        if name in variables:
            return variables[name]
        if match["default"] is not None:
            return match["default"].strip("\"'")
        unset.add(name)
        return f"${name}"

    # a command's output stays one word, unexpanded
    line = _CALLS.sub(lambda call: re.sub(r"\s+", "_", call[0].replace("$", "\\$")), line)
    return _EXPANDED.sub(value, line), unset


def _split(line: str, where: str) -> Iterator[list[str]]:
    """Yield the words of each command of a line, redirections left out."""
    # ; | && || end a command; whitespace_split keeps --flag=value and paths whole
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
    """Split words into the leading `NAME=value` assignments and the rest."""
    settings = {}
    while words and _ASSIGNMENT.fullmatch(words[0]):
        name, _, value = words[0].partition("=")
        settings[name] = value
        words = words[1:]
    return settings, words
