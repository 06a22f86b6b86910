"""Rules for the values in other programs' files, each in words and as a test."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """What the value of a key must be, in words and as a test."""

    words: str
    is_met: Callable[[Any], bool]
    may_be_null: bool = False

    def allows(self, value: Any) -> bool:
        """Whether a value is so."""
        return self.is_met(value) or (value is None and self.may_be_null)


def integer(low: int, high: int, *, may_be_null: bool = False) -> Rule:
    """An integer within both bounds, which true and false are not."""
    words = f"an integer from {low:,} to {high:,}"
    return Rule(words, lambda value: type(value) is int and low <= value <= high, may_be_null)


def number(low: float, high: float, *, is_above: bool = False, may_be_null: bool = False) -> Rule:
    """A finite number within both bounds, `is_above`: above the lower one."""
    words = f"a number above {low:g}, at most {high:g}" if is_above else f"a number from {low:g} to {high:g}"
    return Rule(words, lambda value: is_within(value, low, high, is_above=is_above), may_be_null)


def is_within(value: Any, low: float, high: float, *, is_above: bool = False) -> bool:
    """Whether a value is a finite number within both bounds, `is_above`: above the lower one."""
    is_number = type(value) is int or (type(value) is float and math.isfinite(value))
    return is_number and low <= value <= high and not (is_above and value == low)


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


SWITCH = Rule("true or false", lambda value: isinstance(value, bool))
SWITCH_OR_NULL = replace(SWITCH, may_be_null=True)
TEXT = Rule("text", lambda value: isinstance(value, str), may_be_null=True)
TEXTS = Rule("a list of texts", is_texts, may_be_null=True)
OBJECT = Rule("an object", lambda value: isinstance(value, dict), may_be_null=True)
