"""Regular expressions from files: how many steps a match may take, told before it is tried.

Python's matcher goes back and tries again wherever a pattern leaves a choice, so `(a+)+$` takes 2**n steps
over n characters. The steps over one name are bounded by the product of the choices: a pattern that may take
more than the limit, or that repeats a part with choices in it, is refused.
"""

import re
from dataclasses import dataclass, replace
from itertools import pairwise

MOST_STEPS = 2**20
"""Over one name, at the worst."""
_MOST_CHARACTERS = 20_000
_LENGTH = 128
"""Characters of a module's name, about the longest: as many places where a repeated part can end."""
_OCCURRENCES = 16
"""How often one character stands in such a name; a repeated part that it must follow ends there."""
_ZERO_WIDTH = {"^", "$", r"\b", r"\B", r"\A", r"\Z"}
_TOKEN = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?P<\w+>|\(\?(?:<?[!=]|:|>)|\(\?[a-zA-Z-]+[:)]|\(\?|"
    r"[*+?][?+]?|\{\d*(?:,\d*)?\}[?+]?|.",
    re.DOTALL,
)
_REPEAT = re.compile(r"(?:\{(\d*)(,?)(\d*)\}|([*+?]))[?+]?")
_REFERENCE = re.compile(r"\\[1-9]")
_CLASS = re.compile(r"\\[dDsSwW]")


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a pattern: at most so many ways to match it at one place."""

    ways: int = 1
    begins: bool = False
    """Whether it begins with a certain character."""
    text: str | None = None
    """All of it, where it is plain text."""
    is_single: bool = False
    """One character or one class."""


class PatternError(ValueError):
    """A pattern that is invalid, or that may take too many steps."""


def require_bounded(pattern: str) -> None:
    """Raise PatternError unless matching the pattern against a module's name ends soon."""
    if len(pattern) > _MOST_CHARACTERS:
        raise PatternError(f"it has {len(pattern):,} characters, at most {_MOST_CHARACTERS:,} are read")
    try:
        re.compile(pattern)
        ways = _Scan(pattern).alternatives().ways
    except (re.error, RecursionError, OverflowError, MemoryError) as err:
        raise PatternError(f"it is no regular expression: {err}") from None
    if ways > MOST_STEPS:
        raise PatternError("matching it may take very long: too many repeated parts in a row")


class _Scan:
    """Reads a valid pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self._tokens: list[str] = [*_TOKEN.findall(pattern), ""]
        self._at = 0

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def alternatives(self) -> _Part:
        parts = [self._sequence()]
        while self._tokens[self._at] == "|":
            self._take()
            parts.append(self._sequence())
        texts = [part.text for part in parts]
        begins = all(part.begins for part in parts)
        if len(parts) == 1:
            return replace(parts[0], is_single=False)
        return _Part(1 if _exclude_each_other(texts) else sum(part.ways for part in parts), begins)

    def _sequence(self) -> _Part:
        atoms: list[tuple[_Part, str]] = []
        while self._tokens[self._at] not in ("", "|", ")"):
            atom = self._atom()
            atoms.append((atom, self._take() if _REPEAT.fullmatch(self._tokens[self._at]) else ""))
        ways, follows = 1, False
        for atom, repeat in reversed(atoms):
            ways = min(ways * _count(atom, repeat, follows), 2 * MOST_STEPS)
            follows = atom.begins and not (repeat and _bounds(repeat)[0] == 0)
        texts = [None if repeat else atom.text for atom, repeat in atoms]
        return _Part(ways, follows, None if None in texts else "".join(map(str, texts)))

    def _atom(self) -> _Part:
        token = self._take()
        if token.startswith("("):
            return self._group(token)
        if token in _ZERO_WIDTH:
            return _Part()
        if _REFERENCE.fullmatch(token):
            raise PatternError("it refers back to a group, which is not supported")
        is_one = token != "." and not token.startswith("[") and not _CLASS.fullmatch(token)
        return _Part(begins=is_one, text=token if is_one else None, is_single=True)

    def _group(self, token: str) -> _Part:
        if token == "(?" or "x" in token.partition("P<")[0]:
            raise PatternError("it has comments or conditions in it, which are not supported")
        if token.endswith(")"):  # flags
            return _Part()
        inner = self.alternatives()
        self._take()
        return _Part(inner.ways) if token.endswith(("!", "=")) else inner


def _exclude_each_other(texts: list[str | None]) -> bool:
    """Whether of several plain texts at most one can stand at a place: none begins as another one is."""
    plain = sorted(text for text in texts if text is not None)
    return len(plain) == len(texts) and not any(b.startswith(a) for a, b in pairwise(plain))


def _bounds(repeat: str) -> tuple[int, int]:
    found = _REPEAT.fullmatch(repeat)
    assert found
    low, comma, high, sign = found.groups()
    if sign:
        return {"*": (0, _LENGTH), "+": (1, _LENGTH), "?": (0, 1)}[sign]
    least = int(low or 0)
    return least, int(high) if high else _LENGTH if comma else least


def _count(atom: _Part, repeat: str, follows: bool) -> int:
    """Ways to match an atom with its repeat; `follows`: a certain character must come behind it."""
    low, high = _bounds(repeat) if repeat else (1, 1)
    if high > 1 and atom.ways > 1:
        raise PatternError("it repeats a part that has choices in it, which may take very long")
    lengths = min(max(high - low, 0) + 1, _OCCURRENCES if follows else _LENGTH)
    return atom.ways * lengths if atom.is_single else atom.ways * lengths * max(low, 1)
