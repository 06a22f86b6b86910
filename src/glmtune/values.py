"""Single cells of a row: read as text or JSON, or refused with an error that names the cell."""

import json
import math
from collections.abc import Mapping
from typing import Any

from glmtune.errors import DataError
from glmtune.strict import KeyTwiceError, parse_json

RowObject = Mapping[str, Any]
"""A row, or a turn of it, as JSON has it: key -> value."""

SHOWN_CHARACTERS = 60
"""Characters of a value that an error quotes."""


class EmptyError(DataError):
    """A question or an answer has no text; `data.empty=skip` leaves such rows out."""


class TableRow(dict[str, str]):
    """A row of a CSV file, whose first line is taken for the names of the columns."""


class Fields(dict[str, Any]):
    """A row, or a turn of it, that notes the keys read, by index or by `get`."""

    __slots__ = ("read",)

    def __init__(self, values: RowObject) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        """Return the value of a key, and note the key as read."""
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: object = None) -> Any:
        """Return the value of a key or the default, and note the key as read."""
        self.read.add(key)
        return super().get(key, default)

    def unread(self) -> list[str]:
        """Return the keys that hold something and were never read."""
        # items() does not go through __getitem__, so looking for them reads nothing
        return [key for key, value in self.items() if key not in self.read and is_filled(value)]


def is_filled(value: object) -> bool:
    """True if a cell holds something: not null, NaN, blank text or an empty list or object."""
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}")
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and value not in ([], {})


def is_plain(value: object) -> bool:
    """True for a finite number, true and false, which have one spelling as text."""
    # bool is a subclass of int
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def is_void(value: object) -> bool:
    """True for null, and for a table's empty cell: a number that is not finite."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def text(value: object, name: str) -> str:
    """Return the value if it is text, which may be empty. Raises `DataError` for anything else."""
    if not isinstance(value, str):
        raise _no_text(value, name)
    try:
        value.encode()  # fails for half of a surrogate pair, which JSON can spell and no tokenizer reads
    except UnicodeEncodeError as err:
        raise DataError(
            f"{name!r} holds half a character, got {shown(value[err.start : err.end])} "
            f"at character {err.start + 1}",
            hint=r"write the whole \ud8xx\udcxx pair, or the character itself",
        ) from None
    return value


def _no_text(value: object, name: str) -> DataError:
    """Return the error for a value that is not text, with advice by its kind."""
    # OpenAI's list of parts, {"type": "image_url", ...} beside {"type": "text", ...}
    parts = [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
    kinds = {kind for part in parts if isinstance(kind := part.get("type"), str) and kind != "text"}
    if kinds:
        return DataError(
            f"{name!r} holds parts that are no text: {', '.join(sorted(kinds))}, got {shown(value)}",
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


def asked(value: object, name: str) -> str:
    """Return a question, which may be blank, or raise as `text` does: `EmptyError` for null and NaN."""
    try:
        return text(value, name)
    except DataError as err:
        raise (EmptyError(str(err), hint=err.hint) if is_void(value) else err) from None


def non_empty(value: object, name: str) -> str:
    """Return the value if it is text and not blank, like an answer. Raises `DataError` for anything else."""
    if is_void(value) or (isinstance(value, str) and not value.strip()):
        raise EmptyError(
            f"{name!r} must be non-empty text, got {shown(value)}",
            hint="write the answer, or remove the row: there is nothing to learn in it",
        )
    return text(value, name)


def decoded(value: object) -> Any:
    """Return the value of a cell whose text is JSON, as lists in CSV are; any other value as it is.

    Raises `DataError` if an object in the JSON has a key twice.
    """
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except KeyTwiceError as err:
        raise DataError(f"JSON in which {err.msg}, got {shown(value)}", hint=err.hint) from None
    except json.JSONDecodeError:
        return value


def shown(value: object) -> str:
    """Return a value as a message quotes it, shortened."""
    if not isinstance(value, str):
        spelled = json.dumps(value, ensure_ascii=False, default=str)
    elif any("\ud800" <= character <= "\udfff" for character in value):
        spelled = ascii(value)  # half a surrogate pair cannot be printed
    else:
        spelled = repr(value)
    return spelled if len(spelled) <= SHOWN_CHARACTERS else spelled[: SHOWN_CHARACTERS - 3] + "..."
