"""Rules for values read from JSON and YAML files, each in words and as a test."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """The values that a key may have, in words and as a test."""

    words: str
    """The end of the sentence "`key` must be ..."."""
    is_met: Callable[[Any], bool]
    may_be_null: bool = False
    """True if null fits too; `words` does not mention it."""

    def allows(self, value: object) -> bool:
        """Return True if a value fits, null included where `may_be_null` says so."""
        return self.is_met(value) or (value is None and self.may_be_null)

    def or_null(self) -> "Rule":
        """Return the same rule, with null allowed and mentioned in its words."""
        return replace(self, words=f"{self.words}, or null", may_be_null=True)


def integer(low: int, high: int, *, may_be_null: bool = False) -> Rule:
    """Make the rule for an integer within both bounds; true and false are no integers."""
    words = f"an integer from {low:,} to {high:,}"
    # `type(...) is int`, because isinstance(True, int) holds
    return Rule(words, lambda value: type(value) is int and low <= value <= high, may_be_null)


def number(low: float, high: float, *, is_above: bool = False, may_be_null: bool = False) -> Rule:
    """Make the rule for a finite number within both bounds; `is_above` excludes the lower bound."""
    words = f"a number above {low:g}, at most {high:g}" if is_above else f"a number from {low:g} to {high:g}"
    return Rule(words, lambda value: is_within(value, low, high, is_above=is_above), may_be_null)


def is_within(value: object, low: float, high: float, *, is_above: bool = False) -> bool:
    """Return True for a finite number within both bounds; `is_above` excludes the lower bound."""
    # no isfinite() of an int: it raises OverflowError for one that no float can hold
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return low <= value <= high and not (is_above and value == low)
    return False


def is_texts(value: object) -> bool:
    """Return True for a list of texts."""
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


SWITCH = Rule("true or false", lambda value: isinstance(value, bool))
SWITCH_OR_NULL = replace(SWITCH, may_be_null=True)
TEXT = Rule("text", lambda value: isinstance(value, str), may_be_null=True)
TEXTS = Rule("a list of texts", is_texts, may_be_null=True)
OBJECT = Rule("an object", lambda value: isinstance(value, dict), may_be_null=True)
