"""Row formats: one function a format turns one raw row into the messages of a conversation.

Which format a row has is found by looking at its columns; errors here say what is wrong with a row, the
reader adds where it stands.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from glmtune.data import columns, dialogues, rounds, unknown
from glmtune.errors import ConfigError, DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message
from glmtune.templates.messages import THOUGHT_BEGIN, THOUGHT_END
from glmtune.values import Fields, RowObject, decoded, is_filled, is_plain, shown

Messages = tuple[Message, ...]
Parse = Callable[[RowObject], Messages]

VOID = {"nan", "none", "null", "<na>"}
"""What programs write into a cell without a value, in small letters."""
LONGEST_VOID = 16
"""Characters of a cell, spaces around it too, from which on nobody looks for those."""


@dataclass(frozen=True, slots=True)
class Format:
    """The columns that every row of a format has, and what turns such a row into messages.

    What a format may read besides is listed nowhere: a row knows which of its columns were read.
    """

    columns: tuple[str, ...]
    parse: Parse | None = None
    """Of a row that is a list of turns, its history among them; else the columns are question and answer."""
    has_form: Callable[[RowObject], bool] | None = None
    """Whether a row with these columns is of this format, where another has the same columns."""
    input_column: str | None = None
    """Column of text that follows the question on a new line."""

    @property
    def is_dialogue(self) -> bool:
        """Whether a row is a list of turns."""
        return self.parse is not None


@dataclass(frozen=True, slots=True)
class Parsed:
    """A row's messages, those after the last answer included, and what became of its filled columns."""

    messages: Messages
    is_dialogue: bool
    unread: list[str]
    """Those that nobody reads; `messages.name` is a key of turns."""
    ignored: list[str]
    """Those that the settings leave out."""
    void: list[str]
    """Those read as text whose text spells nothing, such as `nan`."""
    plain: list[str]
    """Those that hold a number, true or false, read as its text."""
    read: list[str]
    """Those that became part of the messages."""


@dataclass(frozen=True, slots=True)
class RowParser:
    """Turns the rows of a file into messages, each by the format it fits."""

    settings: Data
    format: str
    """Names of the formats found, that of most rows first."""
    counts: Counter[str]
    """How many rows fit each format: a row that fits several, or none, is read as most others are."""
    named: Format | None = None
    """The question and answer that the settings name, or that a pair of usual names tells."""
    taken: str = ""
    """The words that say which columns were taken, where neither the settings nor a format names them."""

    def __call__(self, row: RowObject) -> Messages:
        """The messages of a row up to its last answer, none where nobody answers. Raises `DataError`."""
        return up_to_last_answer(self.parse(row).messages)

    def parse(self, row: RowObject) -> Parsed:
        """The whole row, every filled column accounted for. Raises `DataError`."""
        fields, ignored = _without(row, self.settings.ignore_columns)
        chosen = self.named or _choose(fields, self.counts)
        if chosen.is_dialogue:
            ignored += _track_turns(fields, chosen.columns[0], self.settings.ignore_columns)
        plain = [] if chosen.is_dialogue else _spell_out(fields, chosen, self.settings)
        messages = _messages(fields, chosen, self.settings)
        _check_thoughts(messages)
        read = [name for name, cell in fields.items() if name in fields.read and is_filled(cell)]
        void = [name for name in read if _is_void(fields[name])]
        unread = [*_unread(fields, chosen)]
        return Parsed(messages, chosen.is_dialogue, unread, ignored, void, plain, read)


def _spell_out(row: Fields, chosen: Format, settings: Data) -> list[str]:
    """Write numbers, true and false of question, input and answer as the text that JSON has for them."""
    names = [*chosen.columns, settings.input_column or chosen.input_column]
    plain = [name for name in names if name is not None and is_plain(dict.get(row, name))]
    row.update({name: json.dumps(dict.get(row, name)) for name in plain})
    return plain


def _is_void(cell: object) -> bool:
    return isinstance(cell, str) and len(cell) < LONGEST_VOID and cell.strip().lower() in VOID


def find_format(rows: Sequence[RowObject], settings: Data) -> RowParser:
    """Return what turns each of these rows into messages, its `history` and `system` columns included.

    Raises `DataError` where the columns of no row fit a format.
    """
    named = _named_format(settings)
    if named is not None:
        return RowParser(settings, "/".join(named.columns), Counter(), named)
    unknown.check_not_pairs(rows[0], settings.ignore_columns)
    fits = [_fitting(_without(row, settings.ignore_columns)[0]) for row in rows]
    counts = Counter(name for names in fits for name in names)
    pair = None if counts else usual_pair(_without(rows[0], settings.ignore_columns)[0])
    if not counts and pair is None:
        raise unknown.no_format(rows, [known.columns for known in FORMATS.values()])
    unknown.check_not_marked(rows, settings.ignore_columns)
    if pair is not None:
        taken = " and ".join(map(repr, pair.columns))
        return RowParser(settings, "/".join(pair.columns), Counter(), pair, taken)
    found = Counter(_most(names, counts)[0] for names in fits if names)
    return RowParser(settings, " + ".join(name for name, _ in found.most_common()), counts)


def fits(row: RowObject, settings: Data) -> bool:
    """Whether a row has the columns of a format, or one that the settings name."""
    kept = _without(row, settings.ignore_columns)[0]
    if (named := _named_format(settings)) is not None:
        return not kept.keys().isdisjoint(named.columns)
    return bool(_fitting(kept)) or usual_pair(kept) is not None


def up_to_last_answer(messages: Messages) -> Messages:
    """A dialogue without the turns that nobody answered, which may be all."""
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
    return messages[: last + 1]


FORMATS: dict[str, Format] = {
    "alpaca": Format(("instruction", "output"), input_column="input"),
    "adgen": Format(("content", "summary")),
    "prompt_response": Format(("prompt", "response")),
    "prompt_completion": Format(("prompt", "completion")),
    "question_answer": Format(("question", "answer")),
    "query_response": Format(("query", "response")),
    "query_answer": Format(("query", "answer")),
    "messages": Format(("messages",), dialogues.messages),
    "sharegpt": Format(("conversations",), dialogues.sharegpt, dialogues.is_sharegpt),
    "chatglm3": Format(("conversations",), dialogues.chatglm3, dialogues.is_chatglm3),
    "firefly": Format(("conversation",), rounds.firefly, rounds.is_firefly),
}


USUAL = (
    *(
        ("q", "a"),
        ("instruction", "response"),
        ("问题", "回答"),
        ("问题", "答案"),
        ("提问", "回答"),
        ("问", "答"),
    ),
    *(known.columns for known in FORMATS.values() if not known.is_dialogue),
)
"""Names of question and answer that leave no doubt, whatever their case."""


# Which format


def usual_pair(row: RowObject) -> Format | None:
    """The question and answer that a row's columns name in a usual way, if they do so once."""
    spelled = {name.strip().lower(): name for name in row}
    found = [pair for pair in USUAL if spelled.keys() >= {*pair}]
    if len(found) != 1 or len(spelled) < len(row):
        return None
    question, answer = found[0]
    below = spelled.get("input") if question == "instruction" else None
    return Format((spelled[question], spelled[answer]), input_column=below)


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
    return Format((settings.prompt_column, settings.response_column))


def _fitting(row: RowObject) -> list[str]:
    """Names of the formats that a row fits, by its columns alone where its turns cannot be read."""
    fitting = _with_columns(tuple(row))
    try:
        return [name for name in fitting if (is_so := FORMATS[name].has_form) is None or is_so(row)]
    except DataError:  # parsing the row says so, with its place
        return list(fitting)


@lru_cache(maxsize=256)
def _with_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the formats whose columns are among these; the rows of a file are mostly alike."""
    return tuple(name for name, known in FORMATS.items() if set(columns) >= set(known.columns))


def _most(names: Collection[str], counts: Counter[str]) -> list[str]:
    """Of these formats those that most rows fit."""
    most = max(counts[name] for name in names)
    return [name for name in names if counts[name] == most]


def _choose(row: RowObject, counts: Counter[str]) -> Format:
    names = _fitting(row)
    if len(names) == 1:
        return FORMATS[names[0]]
    best = _most(names or FORMATS, counts)
    first, *others = dict.fromkeys(FORMATS[name].columns for name in best)
    if others and names:
        several = " and ".join("/".join(names) for names in (first, *others))
        rest = dict.fromkeys(name for names in others for name in names if name not in first)
        raise DataError(
            f"the row fits several formats: {several}",
            hint=f"leave all but one out: {columns.setting('ignore_columns', list(rest))}",
        )
    return FORMATS[best[0]]


# Which columns


def _without(row: RowObject, ignore: Collection[str]) -> tuple[Fields, list[str]]:
    """The row without the columns to ignore, and which of those hold something."""
    if not ignore:
        return Fields(row), []
    kept = Fields({name: cell for name, cell in row.items() if name not in ignore})
    return kept, [name for name, cell in row.items() if name in ignore and is_filled(cell)]


def _track_turns(row: Fields, column: str, ignore: Collection[str]) -> list[str]:
    """Put turns into a row that know which of their keys were read; give the keys left out of them."""
    left_out: dict[str, None] = {}
    turns = decoded(dict.get(row, column))
    if isinstance(turns, list):
        keys = [name.removeprefix(f"{column}.") for name in ignore if name.startswith(f"{column}.")]
        row[column] = [_without(turn, keys)[0] if isinstance(turn, dict) else turn for turn in turns]
        for turn in turns:
            if isinstance(turn, dict):
                left_out.update(dict.fromkeys(f"{column}.{key}" for key in keys if is_filled(turn.get(key))))
    return list(left_out)


def _unread(row: Fields, chosen: Format) -> Iterator[str]:
    yield from row.unread()
    column = chosen.columns[0]
    turns = row.get(column) if chosen.is_dialogue else None
    keys = [key for turn in turns or () if isinstance(turn, Fields) for key in turn.unread()]
    yield from dict.fromkeys(f"{column}.{key}" for key in keys)


# Row -> messages


def _messages(row: RowObject, chosen: Format, settings: Data) -> Messages:
    if chosen.parse is None:
        return rounds.question_and_answer(row, chosen.columns, chosen.input_column, settings)
    name = chosen.columns[0]
    if name not in row:
        raise columns.missing(name, row)
    if rounds.history(row, settings.history_column):
        raise _beside(settings.history_column or "history", name)
    if settings.input_column and is_filled(row.get(settings.input_column)):
        raise _beside(settings.input_column, name)
    messages = chosen.parse(row)
    if settings.encoding != "chat" and any(message.calls for message in messages):
        raise DataError(
            "a tool call: the official scripts do not take it as such", hint="use data.encoding=chat"
        )
    return _with_system(messages, rounds.system(row, settings), settings)


def _beside(name: str, turns: str) -> DataError:
    return DataError(
        f"{name!r} stands beside {turns!r}, got both",
        hint=f"put all turns of the conversation into {turns!r}",
    )


def _with_system(messages: Messages, column: Messages, settings: Data) -> Messages:
    """Put the system text of the row's column, or of the settings, into the turn that holds the tools."""
    first = messages[0] if messages and messages[0].role == "system" else None
    own_text = first.content if first else ""
    if own_text.strip() and settings.system is not None:
        raise rounds.two_systems("by the row and by data.system")
    if own_text.strip() and column:
        raise rounds.two_systems("by its column and by a turn")
    if first is None:
        return *column, *messages
    added = column[0].content if column else settings.system
    return replace(first, content=added or own_text), *messages[1:]


def has_open_thought(message: Message) -> bool:
    """Whether an answer holds a <think> that never closes."""
    return message.role == "assistant" and THOUGHT_BEGIN in message.content.rpartition(THOUGHT_END)[2]


def _check_thoughts(messages: Messages) -> None:
    """Refuse an answer that was cut within its thought, which would be learned as the answer, or has two."""
    for message in messages:
        tags = [tag for tag in (THOUGHT_BEGIN, THOUGHT_END) if tag in (message.thought or "")]
        if tags:
            raise DataError(
                f"a thought holds {tags[0]}, got {shown(message.thought)}",
                hint="write the thought alone: the chat format puts its tags around it",
            )
        if message.thought is not None and THOUGHT_END in message.content:
            raise DataError(
                f"an answer holds a thought beside it and one inside, got {shown(message.content)}",
                hint="keep one of the two",
            )
        if has_open_thought(message) and message.content.lstrip().startswith(THOUGHT_BEGIN):
            raise DataError(
                f"an answer's <think> never closes, got {shown(message.content)}",
                hint="the answer was cut as it was generated: remove the row, or write its end with </think>",
            )
