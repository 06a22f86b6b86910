"""Single values of a row: taken as text, or refused in words that name them."""

import json
import math
from collections.abc import Mapping
from typing import Any

from glmtune.errors import DataError
from glmtune.strict import KeyTwiceError, parse_json

RowObject = Mapping[str, Any]

SHOWN_CHARACTERS = 60


class TableRow(dict[str, str]):
    """A row of a file whose first line is taken for the names of the columns."""


class Fields(dict[str, Any]):
    """A row, or one turn of it, that knows which of its keys were read: by index or by `get`."""

    __slots__ = ("read",)

    def __init__(self, values: RowObject) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        """The value of a key, which counts as read."""
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key or the default; the key counts as read."""
        self.read.add(key)
        return super().get(key, default)

    def unread(self) -> list[str]:
        """The keys that hold something and that nobody has read."""
        return [key for key, value in self.items() if key not in self.read and is_filled(value)]


def is_filled(value: Any) -> bool:
    """Whether there is anything in a cell: not null, NaN, blank text or an empty list or object."""
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}")
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and value not in ([], {})


def is_plain(value: Any) -> bool:
    """Whether a value is a finite number, true or false, which have one spelling as text."""
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def text(value: Any, name: str) -> str:
    """The value as text, perhaps empty. Raises `DataError` for anything else, or half a character."""
    if not isinstance(value, str):
        raise _no_text(value, name)
    try:
        value.encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"{name!r} holds half a character, got {shown(value[err.start : err.end])} "
            f"at character {err.start + 1}",
            hint=r"write the whole \ud8xx\udcxx pair, or the character itself",
        ) from None
    return value


def _no_text(value: Any, name: str) -> DataError:
    kinds = _other_parts(value)
    if kinds:
        return DataError(
            f"{name!r} holds parts that are no text: {', '.join(kinds)}, got {shown(value)}",
            hint="these models read text alone: leave such rows out, or the parts with what refers to them",
        )
    hint = "write it as one text"
    if value is None:
        hint = 'write "" for an empty cell, or leave the row out'
    elif isinstance(value, list) and all(isinstance(part, str) for part in value):
        hint = "write it as one text; of several, each in a row of its own"
    elif isinstance(value, float) and not math.isfinite(value):
        hint = f'{shown(value)} is no text: write "" for an empty cell'
    elif isinstance(value, int | float):
        hint = f'put it in quotes: "{shown(value)}"'
    return DataError(f"{name!r} must be text, got {shown(value)}", hint=hint)


def _other_parts(value: Any) -> list[str]:
    """The kinds of the parts in OpenAI's list of parts, such as `image_url`, that are not text."""
    parts = value if isinstance(value, list) else []
    kinds = [part["type"] for part in parts if isinstance(part, dict) and isinstance(part.get("type"), str)]
    return sorted({kind for kind in kinds if kind != "text"})


def non_empty(value: Any, name: str) -> str:
    """The value as text that is not blank: an answer."""
    is_number = isinstance(value, float) and not math.isfinite(value)
    is_empty = value is None or is_number or (isinstance(value, str) and not value.strip())
    if is_empty:
        raise DataError(
            f"{name!r} must be non-empty text, got {shown(value)}",
            hint="write the answer, or remove the row: there is nothing to learn in it",
        )
    return text(value, name)


def decoded(value: Any) -> Any:
    """What a cell holds as JSON, as in CSV; anything else stays as it is.

    Raises `DataError` where an object in it has a key twice.
    """
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except KeyTwiceError as err:
        raise DataError(f"JSON in which {err.msg}, got {shown(value)}", hint=err.hint) from None
    except json.JSONDecodeError:
        return value


def shown(value: Any) -> str:
    """The value for a message, shortened."""
    spelled = ascii(value) if isinstance(value, str) and _has_surrogate(value) else None
    if spelled is None:
        spelled = (
            repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        )
    return spelled if len(spelled) <= SHOWN_CHARACTERS else spelled[: SHOWN_CHARACTERS - 3] + "..."


def _has_surrogate(value: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in value)
