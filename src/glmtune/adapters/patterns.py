"""Bounds on the time that a regular expression from a file can take, known before it is matched.

Python's matcher backtracks wherever a pattern leaves a choice, so `(a+)+$` takes 2**n steps over n
characters. The product of the choices bounds the steps over one name: a pattern above the limit, or one that
repeats a part with choices in it, is refused.
"""

import re
from dataclasses import dataclass, replace
from itertools import pairwise

MOST_STEPS = 2**20
"""Largest number of steps over one name, in the worst case."""
_MOST_CHARACTERS = 20_000
_LENGTH = 128
"""Characters of a module's name, about the longest: a repeated part can end after each of them."""
_OCCURRENCES = 16
"""Times one character occurs in such a name; a repeated part that it must follow ends only there."""
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
    """A part of a pattern, and the number of ways it can match from one position."""

    ways: int = 1
    has_fixed_start: bool = False
    """True if the part begins with one certain character."""
    text: str | None = None
    """The part itself, if it is plain text."""
    is_single: bool = False
    """True for one character or one class."""


class PatternError(ValueError):
    """A pattern that is invalid, or that may take too many steps."""


def require_bounded(pattern: str) -> None:
    """Raise PatternError for a pattern that is invalid, or may take long to match against a module's name."""
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
    """A recursive-descent parser that reads a valid pattern from left to right."""

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
        if len(parts) == 1:
            return replace(parts[0], is_single=False)
        # Plain texts of which none begins another exclude each other: at most one can match at a position.
        texts = sorted(part.text for part in parts if part.text is not None)
        is_plain = len(texts) == len(parts)
        is_choice = not is_plain or any(longer.startswith(text) for text, longer in pairwise(texts))
        has_fixed_start = all(part.has_fixed_start for part in parts)
        return _Part(sum(part.ways for part in parts) if is_choice else 1, has_fixed_start)

    def _sequence(self) -> _Part:
        atoms: list[tuple[_Part, str]] = []
        while self._tokens[self._at] not in ("", "|", ")"):
            atom = self._atom()
            atoms.append((atom, self._take() if _REPEAT.fullmatch(self._tokens[self._at]) else ""))
        ways, is_followed = 1, False
        # from the end, since the ends of a repeated part depend on the character that must follow it
        for atom, repeat in reversed(atoms):
            low, high = _bounds(repeat) if repeat else (1, 1)
            if high > 1 and atom.ways > 1:
                raise PatternError("it repeats a part that has choices in it, which may take very long")
            lengths = min(max(high - low, 0) + 1, _OCCURRENCES if is_followed else _LENGTH)
            # without a limit, the product of thousands of parts would become a number of many digits
            ways = min(ways * atom.ways * lengths * (1 if atom.is_single else max(low, 1)), 2 * MOST_STEPS)
            is_followed = atom.has_fixed_start and low > 0
        texts = [None if repeat else atom.text for atom, repeat in atoms]
        return _Part(ways, is_followed, None if None in texts else "".join(map(str, texts)))

    def _atom(self) -> _Part:
        token = self._take()
        if token.startswith("("):
            if token == "(?" or "x" in token.partition("P<")[0]:
                raise PatternError("it has comments or conditions in it, which are not supported")
            if token.endswith(")"):  # flags
                return _Part()
            inner = self.alternatives()
            self._take()  # the closing parenthesis
            return _Part(inner.ways) if token.endswith(("!", "=")) else inner
        if token in _ZERO_WIDTH:
            return _Part()
        if _REFERENCE.fullmatch(token):
            raise PatternError("it refers back to a group, which is not supported")
        is_one = token != "." and not token.startswith("[") and not _CLASS.fullmatch(token)
        return _Part(has_fixed_start=is_one, text=token if is_one else None, is_single=True)


def _bounds(repeat: str) -> tuple[int, int]:
    """Return the fewest and most times that a repeat, such as `{2,3}` or `*`, allows."""
    match = _REPEAT.fullmatch(repeat)
    assert match
    low, comma, high, sign = match.groups()
    if sign:
        return {"*": (0, _LENGTH), "+": (1, _LENGTH), "?": (0, 1)}[sign]
    least = int(low or 0)
    return least, int(high) if high else _LENGTH if comma else least
