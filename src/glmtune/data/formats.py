"""Row formats: the table of formats, and the functions that find a row's format and parse the row by it.

A format is recognised by a row's columns. Errors raised here say what is wrong with a row; the reader adds
the file and line.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from glmtune.data import columns, dialogues, rounds, unknown
from glmtune.errors import ConfigError, DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message
from glmtune.templates.messages import THOUGHT_BEGIN, THOUGHT_END
from glmtune.values import EmptyError, Fields, RowObject, decoded, is_filled, is_plain, shown

Messages = tuple[Message, ...]
Parse = Callable[[RowObject], Messages]

VOID = {"nan", "none", "null", "<na>"}
"""Words that programs write into a cell without a value, in small letters."""
LONGEST_VOID = 16
"""Cells of this many characters or more, spaces included, are never compared with `VOID`."""


@dataclass(frozen=True, slots=True)
class Format:
    """A row format: the columns that all its rows have, and the function that parses a row of turns.

    Optional columns such as `system` and `history` are not listed: `Fields` notes which columns are read.
    """

    columns: tuple[str, ...]
    """The column of turns of a dialogue format; else the columns of question and answer."""
    parse: Parse | None = None
    """Turns a row of a dialogue format into messages; None for a format of question and answer."""
    has_form: Callable[[RowObject], bool] | None = None
    """True for a row of this format; set where another format has the same columns."""
    input_column: str | None = None
    """Column of text that follows the question on a new line."""

    @property
    def is_dialogue(self) -> bool:
        """True if a row holds a list of turns."""
        return self.parse is not None


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A row's messages, including those after the last answer, and the fate of its filled columns."""

    messages: Messages
    is_dialogue: bool
    unread: list[str]
    """Columns that nothing reads; `messages.name` is the key `name` of turns in `messages`."""
    ignored: list[str]
    """Columns left out by `data.ignore_columns`."""
    void: list[str]
    """Columns read as text whose text spells no value, such as `nan`."""
    plain: list[str]
    """Columns that hold a number, true or false, read as text."""
    read: list[str]
    """Columns that became part of the messages."""


@dataclass(frozen=True, slots=True)
class RowParser:
    """Turns the rows of a file into messages, each row by the format that it fits."""

    settings: Data
    format: str
    """Names of the formats found, the most frequent first."""
    counts: Counter[str]
    """Rows that fit each format; a row that fits several, or none, is read in the most frequent of them."""
    named: Format | None = None
    """The format of all rows, set by the settings or by usual column names; None if each row has its own."""
    taken: str = ""
    """The columns taken as question and answer, for a message, if neither settings nor a format name them."""

    def __call__(self, row: RowObject) -> Messages:
        """Return a row's messages up to its last answer; none if there is no answer. Raises `DataError`."""
        return up_to_last_answer(self.parse(row).messages)

    def parse(self, row: RowObject) -> ParsedRow:
        """Parse a whole row, accounting for every filled column. Raises `DataError`.

        It is an `EmptyError` for a row without an answer and, with `data.empty=skip`, without a question.
        """
        does_skip = self.settings.empty == "skip"
        if does_skip and not any(map(is_filled, row.values())):
            raise EmptyError("no column is filled")
        fields, ignored = _drop_columns(row, self.settings.ignore_columns)
        row_format = self.named or _choose_format(fields, self.counts)
        plain: list[str] = []
        if row_format.is_dialogue:
            ignored += _track_turns(fields, row_format.columns[0], self.settings.ignore_columns)
        else:
            # numbers, true and false in question, input and answer are read as JSON spells them; dict.get, as
            # Fields.get would count a look at the cell as reading it
            names = [*row_format.columns, self.settings.input_column or row_format.input_column]
            plain = [name for name in names if name is not None and is_plain(dict.get(fields, name))]
            fields.update({name: json.dumps(dict.get(fields, name)) for name in plain})
        messages = _read_messages(fields, row_format, self.settings)
        questions = [message.content for message in up_to_last_answer(messages) if message.role == "user"]
        if does_skip and not all(map(str.strip, questions)):
            raise EmptyError("a question is empty")
        _check_thoughts(messages)
        read = [name for name, cell in fields.items() if name in fields.read and is_filled(cell)]
        texts = {name: cell for name in read if isinstance(cell := fields[name], str)}
        void = [
            name for name, cell in texts.items() if len(cell) < LONGEST_VOID and cell.strip().lower() in VOID
        ]
        unread = fields.unread()
        if row_format.is_dialogue:
            turns = [turn for turn in fields.get(row_format.columns[0]) or () if isinstance(turn, Fields)]
            keys = dict.fromkeys(key for turn in turns for key in turn.unread())
            unread += [f"{row_format.columns[0]}.{key}" for key in keys]
        return ParsedRow(messages, row_format.is_dialogue, unread, ignored, void, plain, read)


def find_parser(rows: Sequence[RowObject], settings: Data) -> RowParser:
    """Return the parser of a file's rows: by the columns that the settings name, else by the rows' columns.

    Raises `DataError` if the columns of no row fit a format.
    """
    named = _named_format(settings)
    if named is not None:
        return RowParser(settings, "/".join(named.columns), Counter(), named)
    unknown.check_not_pairs(rows[0], settings.ignore_columns)
    fitting = [_fitting_formats(_drop_columns(row, settings.ignore_columns)[0]) for row in rows]
    counts = Counter(name for names in fitting for name in names)
    pair = None if counts else find_usual_pair(_drop_columns(rows[0], settings.ignore_columns)[0])
    if not counts and pair is None:
        raise unknown.unknown_format(rows, [known.columns for known in FORMATS.values()])
    unknown.check_not_marked(rows, settings.ignore_columns)
    if pair is not None:
        taken = " and ".join(map(repr, pair.columns))
        return RowParser(settings, "/".join(pair.columns), Counter(), pair, taken)
    chosen = Counter(_most_frequent(names, counts)[0] for names in fitting if names)
    return RowParser(settings, " + ".join(name for name, _ in chosen.most_common()), counts)


def has_known_columns(row: RowObject, settings: Data) -> bool:
    """True if a row has the columns of a format, or one that the settings name."""
    columns_left = _drop_columns(row, settings.ignore_columns)[0]
    if (named := _named_format(settings)) is not None:
        return not columns_left.keys().isdisjoint(named.columns)
    return bool(_fitting_formats(columns_left)) or find_usual_pair(columns_left) is not None


def up_to_last_answer(messages: Messages) -> Messages:
    """Return the messages without those after the last answer; none if there is no answer."""
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
    # https://github.com/mymusise/ChatGLM-Tuning, cover_alpaca2jsonl.py
    "context_target": Format(("context", "target")),
    "messages": Format(("messages",), dialogues.messages),
    "sharegpt": Format(("conversations",), dialogues.sharegpt, dialogues.is_sharegpt),
    "chatglm3": Format(("conversations",), dialogues.chatglm3, dialogues.is_chatglm3),
    "firefly": Format(("conversation",), rounds.firefly, rounds.is_firefly),
}
"""Every row format by its name; a new format is a line here, and one in `WRITERS` of data/convert.py."""


USUAL_PAIRS = (
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
"""Names of the columns of question and answer that leave no doubt, in any case of their letters."""


# Which format


def find_usual_pair(row: RowObject) -> Format | None:
    """Return the format of a row with exactly one usual pair of column names, else None."""
    spelled = {name.strip().lower(): name for name in row}
    pairs = [pair for pair in USUAL_PAIRS if spelled.keys() >= {*pair}]
    # fewer spellings than columns: two names differ only in case, so which one is meant is in doubt
    if len(pairs) != 1 or len(spelled) < len(row):
        return None
    question, answer = pairs[0]
    input_column = spelled.get("input") if question == "instruction" else None
    return Format((spelled[question], spelled[answer]), input_column=input_column)


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


def _fitting_formats(row: RowObject) -> list[str]:
    """Return the names of the formats that a row fits."""
    fitting = _formats_with_columns(tuple(row))
    try:
        return [name for name in fitting if (has_form := FORMATS[name].has_form) is None or has_form(row)]
    except DataError:  # turns that cannot be read: parsing the row later says so, with its file and line
        return list(fitting)


# a cache: a file may have millions of rows, most of them with the same columns
@lru_cache(maxsize=256)
def _formats_with_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name, known in FORMATS.items() if set(columns) >= set(known.columns))


def _most_frequent(names: Collection[str], counts: Counter[str]) -> list[str]:
    """Return the formats among `names` that most rows fit; several if they are equally frequent."""
    most = max(counts[name] for name in names)
    return [name for name in names if counts[name] == most]


def _choose_format(row: RowObject, counts: Counter[str]) -> Format:
    """Return the format to read a row in. Raises `DataError` for a row that fits several equally well."""
    names = _fitting_formats(row)
    if len(names) == 1:
        return FORMATS[names[0]]
    best = _most_frequent(names or FORMATS, counts)
    first, *others = dict.fromkeys(FORMATS[name].columns for name in best)
    if others and names:
        several = " and ".join("/".join(names) for names in (first, *others))
        rest = dict.fromkeys(name for names in others for name in names if name not in first)
        raise DataError(
            f"the row fits several formats: {several}",
            hint=f"leave all but one out: {columns.spell_setting('ignore_columns', list(rest))}",
        )
    return FORMATS[best[0]]


# Which columns


def _drop_columns(row: RowObject, ignore: Collection[str]) -> tuple[Fields, list[str]]:
    """Return the row without the columns to ignore, and the names of those that held something."""
    if not ignore:
        return Fields(row), []
    fields = Fields({name: cell for name, cell in row.items() if name not in ignore})
    return fields, [name for name, cell in row.items() if name in ignore and is_filled(cell)]


def _track_turns(row: Fields, column: str, ignore: Collection[str]) -> list[str]:
    """Replace a row's turns by `Fields`, which note the keys read; return the names of ignored keys."""
    left_out: dict[str, None] = {}
    turns = decoded(dict.get(row, column))
    if isinstance(turns, list):
        keys = [name.removeprefix(f"{column}.") for name in ignore if name.startswith(f"{column}.")]
        row[column] = [_drop_columns(turn, keys)[0] if isinstance(turn, dict) else turn for turn in turns]
        for turn in turns:
            if isinstance(turn, dict):
                left_out.update(dict.fromkeys(f"{column}.{key}" for key in keys if is_filled(turn.get(key))))
    return list(left_out)


# Row -> messages


def _read_messages(row: RowObject, row_format: Format, settings: Data) -> Messages:
    if row_format.parse is None:
        return rounds.question_and_answer(row, row_format.columns, row_format.input_column, settings)
    name = row_format.columns[0]
    if name not in row:
        raise columns.missing_column(name, row)
    if rounds.history(row, settings.history_column):
        raise _second_conversation(settings.history_column or "history", name)
    if settings.input_column and is_filled(row.get(settings.input_column)):
        raise _second_conversation(settings.input_column, name)
    messages = row_format.parse(row)
    if settings.encoding != "chat" and any(message.calls for message in messages):
        raise DataError(
            "a tool call: the official scripts do not take it as such", hint="use data.encoding=chat"
        )
    system = rounds.system(row, settings)
    first = messages[0] if messages and messages[0].role == "system" else None
    if first is None:
        return *system, *messages
    if first.content.strip() and settings.system is not None:
        raise rounds.two_systems("by the row and by data.system")
    if first.content.strip() and system:
        raise rounds.two_systems("by its column and by a turn")
    # the row's system turn holds only the tools: the text joins it, as a format has one system turn
    added_text = system[0].content if system else settings.system
    return replace(first, content=added_text or first.content), *messages[1:]


def _second_conversation(name: str, turns: str) -> DataError:
    return DataError(
        f"{name!r} stands beside {turns!r}, got both",
        hint=f"put all turns of the conversation into {turns!r}",
    )


def has_open_thought(message: Message) -> bool:
    """True if an answer holds a <think> that never closes."""
    return message.role == "assistant" and THOUGHT_BEGIN in message.content.rpartition(THOUGHT_END)[2]


def _check_thoughts(messages: Messages) -> None:
    """Raise `DataError` for an answer with two thoughts, or with one that never ends.

    An answer that was cut within its thought would be learned as if the thought were the answer.
    """
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
