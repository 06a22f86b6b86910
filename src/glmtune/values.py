"""Single values of a row: taken as text, or refused in words that name them."""

import json
from collections.abc import Mapping
from typing import Any

from glmtune.errors import DataError

Row = Mapping[str, Any]

SHOWN_CHARACTERS = 60


def text(value: Any, name: str) -> str:
    """The value as text, perhaps empty. Raises `DataError` for anything else, or half a character."""
    if not isinstance(value, str):
        hint = f'put it in quotes: "{value}"' if isinstance(value, int | float) else "write it as one text"
        raise DataError(f"{name!r} must be text, got {shown(value)}", hint=hint)
    try:
        value.encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"{name!r} holds half a character, got {shown(value[err.start : err.end])} "
            f"at character {err.start + 1}",
            hint=r"write the whole \ud8xx\udcxx pair, or the character itself",
        ) from None
    return value


def non_empty(value: Any, name: str) -> str:
    """The value as text that is not blank: an answer."""
    is_other_type = not isinstance(value, str) and value is not None
    if not is_other_type and not (value or "").strip():
        raise DataError(
            f"{name!r} must be non-empty text, got {shown(value)}",
            hint="write the answer, or remove the row: there is nothing to learn in it",
        )
    return text(value, name)


def decoded(value: Any) -> Any:
    """What a cell holds as JSON, as in CSV; anything else stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
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
