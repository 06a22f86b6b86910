"""Row formats: one function a format turns one raw row into the messages of a conversation.

Which format a file has is found by looking at its columns; errors here say what is wrong with a row,
the reader adds where it stands.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from glmtune.data import dialogues
from glmtune.errors import ConfigError, DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message
from glmtune.values import Row, decoded, non_empty, shown, text

Messages = tuple[Message, ...]
Parse = Callable[[Row], Messages]


@dataclass(frozen=True, slots=True)
class Format:
    """The columns that every row of a format has, and what turns such a row into messages."""

    columns: tuple[str, ...]
    parse: Parse
    is_dialogue: bool = False
    """Whether a row is a list of turns, its history among them."""
    has_form: Callable[[Row], bool] | None = None
    """Whether a row with these columns is of this format, where another has the same columns."""


@dataclass(frozen=True, slots=True)
class RowParser:
    """Turns the rows of a file into messages."""

    format: str
    """Name of the format found."""
    parse_whole: Parse
    """A row's messages, those after the last answer included."""

    def __call__(self, row: Row) -> Messages:
        """The messages of a row up to its last answer, none where nobody answers. Raises `DataError`."""
        return up_to_last_answer(self.parse_whole(row))


def up_to_last_answer(messages: Messages) -> Messages:
    """A dialogue without the turns that nobody answered, which may be all."""
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
    return messages[: last + 1]


def alpaca(row: Row) -> Messages:
    """`{instruction, input?, output}`; a non-empty input follows the instruction on a new line."""
    question = _question(row, "instruction")
    extra = row.get("input")
    if extra is not None and text(extra, "input").strip():
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
    "messages": Format(("messages",), dialogues.messages, is_dialogue=True),
    "sharegpt": Format(("conversations",), dialogues.sharegpt, True, dialogues.is_sharegpt),
    "chatglm3": Format(("conversations",), dialogues.chatglm3, True, dialogues.is_chatglm3),
}


def find_format(rows: Sequence[Row], settings: Data) -> RowParser:
    """Return what turns each of these rows into messages, its `history` and `system` columns included.

    Raises `DataError` where the columns fit no format, or several.
    """
    name, chosen = _named_format(settings) or _fitting_format(rows)

    def parse(row: Row) -> Messages:
        if not chosen.is_dialogue:
            return *_system(row, settings), *_history(row, settings.history_column), *chosen.parse(row)
        return _dialogue(row, chosen, settings)

    return RowParser(name, parse)


def _dialogue(row: Row, chosen: Format, settings: Data) -> Messages:
    if any(name not in row for name in chosen.columns):
        raise _missing_column(chosen.columns[0], row)
    if _history(row, settings.history_column):
        raise DataError(
            f"{settings.history_column or 'history'!r} stands beside {chosen.columns[0]!r}, got both",
            hint=f"put all turns of the conversation into {chosen.columns[0]!r}",
        )
    messages = chosen.parse(row)
    if settings.encoding != "chat" and any(message.calls for message in messages):
        raise DataError(
            "a tool call: the official scripts do not take it as such", hint="use data.encoding=chat"
        )
    return _with_system(messages, _system(row, settings), settings)


def _with_system(messages: Messages, column: Messages, settings: Data) -> Messages:
    """Put the system text of the row's column, or of the settings, into the turn that holds the tools."""
    first = messages[0] if messages and messages[0].role == "system" else None
    own_text = first.content if first else ""
    if own_text.strip() and settings.system is not None:
        raise _two_systems("by the row and by data.system")
    if own_text.strip() and column:
        raise _two_systems("by its column and by a turn")
    if first is None:
        return *column, *messages
    added = column[0].content if column else settings.system
    return replace(first, content=added or own_text), *messages[1:]


def _two_systems(where: str) -> DataError:
    return DataError(
        f"'system' is given {where}, got both",
        hint="keep one: leave data.system unset, or remove the row's own",
    )


def _named_format(settings: Data) -> tuple[str, Format] | None:
    names = {"prompt_column": settings.prompt_column, "response_column": settings.response_column}
    missing = [setting for setting, column in names.items() if column is None]
    if len(missing) == 1:
        raise ConfigError(
            f"data.{missing[0]}: not set, though its partner is",
            hint="name both data.prompt_column and data.response_column, or neither",
        )
    if settings.prompt_column is None or settings.response_column is None:
        return None
    columns = (settings.prompt_column, settings.response_column)
    return "/".join(columns), pair(*columns)


def _fitting_format(rows: Sequence[Row]) -> tuple[str, Format]:
    kinds = Counter(frozenset(row) for row in rows)
    fits = {
        name: sum(count for columns, count in kinds.items() if columns.issuperset(known.columns))
        for name, known in FORMATS.items()
    }
    for name, known in FORMATS.items():
        if fits[name] and known.has_form is not None:
            fits[name] = sum(set(known.columns) <= row.keys() and known.has_form(row) for row in rows)
    most = max(fits.values())
    best = [name for name, count in fits.items() if count == most]
    if not most:
        raise _unknown_columns(rows[0])
    if len(best) > 1:
        several = " and ".join("/".join(FORMATS[name].columns) for name in best)
        raise DataError(
            f"the rows fit several formats: {several}",
            hint="name the columns of question and answer: data.prompt_column=... data.response_column=...",
        )
    return best[0], FORMATS[best[0]]


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
    return ", ".join(shown(column) for column in columns) or "none"


def _column(row: Row, name: str) -> Any:
    if name not in row:
        raise _missing_column(name, row)
    return row[name]


def _question(row: Row, name: str) -> str:
    return text(_column(row, name), name)


def _answer(row: Row, name: str) -> str:
    return non_empty(_column(row, name), name)


def _system(row: Row, settings: Data) -> Messages:
    value = row.get("system")
    if value is None or not text(value, "system").strip():
        return ()
    if settings.system is not None:
        raise _two_systems("by the row and by data.system")
    return (Message("system", value),)


def _history(row: Row, column: str | None) -> Messages:
    """Earlier rounds, `[[question, answer], ...]`; null, absent or an empty cell is no history."""
    name = column or "history"
    value = _column(row, name) if column else row.get(name)
    if value is None or value == "":
        return ()
    rounds = decoded(value)
    if not isinstance(rounds, list):
        raise _bad_history(name, value)
    messages: list[Message] = []
    for index, turn in enumerate(rounds):
        if not isinstance(turn, list) or len(turn) != 2:
            raise _bad_history(f"{name}[{index}]", turn, form="[question, answer]")
        messages.append(Message("user", text(turn[0], f"{name}[{index}][0]")))
        messages.append(Message("assistant", non_empty(turn[1], f"{name}[{index}][1]")))
    return tuple(messages)


def _bad_history(name: str, value: Any, *, form: str = "[[question, answer], ...]") -> DataError:
    return DataError(
        f"{name!r} must be {form}, got {shown(value)}",
        hint="a history is a list of earlier rounds, each a list of a question and its answer",
    )
