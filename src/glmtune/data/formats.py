"""Row formats: one function a format turns one raw row into the messages of a conversation.

Which format a file has is found by looking at its columns; errors here say what is wrong with a row,
the reader adds where it stands.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from glmtune.errors import ConfigError, DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message

Row = Mapping[str, Any]
Messages = tuple[Message, ...]
Parse = Callable[[Row], Messages]

SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Format:
    """The columns that every row of a format has, and what turns such a row into messages."""

    columns: tuple[str, ...]
    parse: Parse


def alpaca(row: Row) -> Messages:
    """`{instruction, input?, output}`; a non-empty input follows the instruction on a new line."""
    question = _question(row, "instruction")
    extra = row.get("input")
    if extra is not None and _text(extra, "input").strip():
        question = f"{question}\n{extra}" if question else extra
    return Message("user", question), Message("assistant", _answer(row, "output"))


def pair(question: str, answer: str) -> Format:
    """A format of two columns; an empty question is kept, an empty answer is an error."""

    def parse(row: Row) -> Messages:
        return Message("user", _question(row, question)), Message("assistant", _answer(row, answer))

    return Format((question, answer), parse)


FORMATS: dict[str, Format] = {
    "alpaca": Format(("instruction", "output"), alpaca),
    "adgen": pair("content", "summary"),
    "prompt_response": pair("prompt", "response"),
    "prompt_completion": pair("prompt", "completion"),
    "question_answer": pair("question", "answer"),
    "query_response": pair("query", "response"),
    "query_answer": pair("query", "answer"),
}


def find_format(rows: Sequence[Row], settings: Data) -> Parse:
    """Return what turns each of these rows into messages, its `history` and `system` columns included.

    Raises `DataError` where the columns fit no format, or several.
    """
    chosen = _named_format(settings) or _fitting_format(rows)

    def parse(row: Row) -> Messages:
        return *_system(row, settings), *_history(row, settings.history_column), *chosen.parse(row)

    return parse


def _named_format(settings: Data) -> Format | None:
    names = {"prompt_column": settings.prompt_column, "response_column": settings.response_column}
    missing = [setting for setting, column in names.items() if column is None]
    if len(missing) == 1:
        raise ConfigError(
            f"data.{missing[0]}: not set, though its partner is",
            hint="name both data.prompt_column and data.response_column, or neither",
        )
    if settings.prompt_column is None or settings.response_column is None:
        return None
    return pair(settings.prompt_column, settings.response_column)


def _fitting_format(rows: Sequence[Row]) -> Format:
    kinds = Counter(frozenset(row) for row in rows)
    fits = {
        name: sum(count for columns, count in kinds.items() if columns.issuperset(known.columns))
        for name, known in FORMATS.items()
    }
    most = max(fits.values())
    best = [FORMATS[name] for name, count in fits.items() if count == most]
    if not most:
        raise _unknown_columns(rows[0])
    if len(best) > 1:
        several = " and ".join("/".join(known.columns) for known in best)
        raise DataError(
            f"the rows fit several formats: {several}",
            hint="name the columns of question and answer: data.prompt_column=... data.response_column=...",
        )
    return best[0]


def _unknown_columns(row: Row) -> DataError:
    for known in FORMATS.values():
        missing = [name for name in known.columns if name not in row]
        if all(_nearest(name, row) for name in missing):
            return _missing_column(missing[0], row)
    is_plain = len(row) == 2 and all(isinstance(v, str) and len(k) < 20 for k, v in row.items())
    guess = [*row] if is_plain else ["...", "..."]
    return DataError(
        f"cannot tell the format; columns found: {_listed(row)}",
        hint="name the columns of question and answer: "
        f"data.prompt_column={guess[0]} data.response_column={guess[1]}",
    )


def _missing_column(name: str, row: Row) -> DataError:
    near = _nearest(name, row)
    naming = "name the columns with data.prompt_column and data.response_column"
    return DataError(
        f"column {name!r} is missing; columns found: {_listed(row)}",
        hint=f"did you mean {near!r}? Rename it, or {naming}" if near else f"add it, or {naming}",
    )


def _nearest(name: str, columns: Collection[str]) -> str | None:
    spellings = {column.strip().lower(): column for column in columns}
    close = get_close_matches(name.lower(), spellings, n=1, cutoff=0.7)
    return spellings[close[0]] if close else None


def _listed(columns: Collection[str]) -> str:
    return ", ".join(_shown(column) for column in columns) or "none"


def _column(row: Row, name: str) -> Any:
    if name not in row:
        raise _missing_column(name, row)
    return row[name]


def _question(row: Row, name: str) -> str:
    return _text(_column(row, name), name)


def _answer(row: Row, name: str) -> str:
    return _non_empty(_column(row, name), name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        hint = f'put it in quotes: "{value}"' if isinstance(value, int | float) else "write it as one text"
        raise DataError(f"{name!r} must be text, got {_shown(value)}", hint=hint)
    try:
        value.encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"{name!r} holds half a character, got {_shown(value[err.start : err.end])} "
            f"at character {err.start + 1}",
            hint=r"write the whole \ud8xx\udcxx pair, or the character itself",
        ) from None
    return value


def _non_empty(value: Any, name: str) -> str:
    is_other_type = not isinstance(value, str) and value is not None
    if not is_other_type and not (value or "").strip():
        raise DataError(
            f"{name!r} must be non-empty text, got {_shown(value)}",
            hint="write the answer, or remove the row: there is nothing to learn in it",
        )
    return _text(value, name)


def _shown(value: Any) -> str:
    shown = ascii(value) if isinstance(value, str) and _has_surrogate(value) else None
    if shown is None:
        shown = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 3] + "..."


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _system(row: Row, settings: Data) -> Messages:
    text = row.get("system")
    if text is None or not _text(text, "system").strip():
        return ()
    if settings.system is not None:
        raise DataError(
            "'system' is given by the row and by data.system, got both",
            hint="keep one: leave data.system unset, or remove the column",
        )
    return (Message("system", text),)


def _history(row: Row, column: str | None) -> Messages:
    """Earlier rounds, `[[question, answer], ...]`; null, absent or an empty cell is no history."""
    name = column or "history"
    value = _column(row, name) if column else row.get(name)
    if value is None or value == "":
        return ()
    rounds = _decoded(value)
    if not isinstance(rounds, list):
        raise _bad_history(name, value)
    messages: list[Message] = []
    for index, turn in enumerate(rounds):
        if not isinstance(turn, list) or len(turn) != 2:
            raise _bad_history(f"{name}[{index}]", turn, form="[question, answer]")
        messages.append(Message("user", _text(turn[0], f"{name}[{index}][0]")))
        messages.append(Message("assistant", _non_empty(turn[1], f"{name}[{index}][1]")))
    return tuple(messages)


def _decoded(value: Any) -> Any:
    """Read a CSV cell, which holds the rounds as JSON; anything else stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _bad_history(name: str, value: Any, *, form: str = "[[question, answer], ...]") -> DataError:
    return DataError(
        f"{name!r} must be {form}, got {_shown(value)}",
        hint="a history is a list of earlier rounds, each a list of a question and its answer",
    )
