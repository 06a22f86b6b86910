"""Rows of one question and one answer, earlier rounds and a system text beside them; and rows of rounds."""

import re
from typing import Any

from glmtune.data.columns import column
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message
from glmtune.templates.reading import read_thought
from glmtune.values import RowObject, decoded, non_empty, shown, text

Messages = tuple[Message, ...]

HISTORY_HINT = "a history is a list of earlier rounds, each a list of a question and its answer"
JSON_HINT = 'in a cell a history is JSON, with double quotes: [["...", "..."]]'
SPEAKER = re.compile(
    r"^[^\S\n]*(?:(human|user|用户)|assistant|bot|助手)\s*[:：]", re.IGNORECASE | re.MULTILINE
)
"""Who speaks in a dialogue written as text: a person, or the assistant.

Source: https://huggingface.co/datasets/BelleGroup/multiturn_chat_0.8M."""


def question_and_answer(
    row: RowObject, columns: tuple[str, ...], input_column: str | None, settings: Data
) -> Messages:
    """System text, earlier rounds, question and answer; a filled input follows the question on a new line.

    A thought stands in a column of its own. An empty question is kept, an empty answer is an error.
    """
    question, answer = columns
    asked = text(column(row, question), question)
    extra = _input(row, input_column, settings)
    if extra.strip():
        asked = f"{asked}\n{extra}" if asked else extra
    answered = Message("assistant", non_empty(column(row, answer), answer), thought=read_thought(row, "row"))
    earlier = history(row, settings.history_column)
    return *system(row, settings), *earlier, *_asked(asked, question, settings), answered


def _input(row: RowObject, default: str | None, settings: Data) -> str:
    """The text of the input column, empty where there is none."""
    name = settings.input_column or default
    if name is None:
        return ""
    value = column(row, name) if settings.input_column else row.get(name)
    return "" if value is None else text(value, name)


def system(row: RowObject, settings: Data) -> Messages:
    """The system text of a row's own column, if it has one."""
    name = settings.system_column or "system"
    value = column(row, name) if settings.system_column else row.get(name)
    if value is None or not text(value, name).strip():
        return ()
    if settings.system is not None:
        raise two_systems("by the row and by data.system")
    return (Message("system", value),)


def two_systems(where: str) -> DataError:
    """The error for a second system text."""
    return DataError(
        f"'system' is given {where}, got both",
        hint="keep one: leave data.system unset, or remove the row's own",
    )


def history(row: RowObject, named: str | None) -> Messages:
    """Earlier rounds, `[[question, answer], ...]`; null, absent or an empty cell is no history."""
    name = named or "history"
    value = column(row, name) if named else row.get(name)
    if value is None or value == "":
        return ()
    rounds = decoded(value)
    if not isinstance(rounds, list):
        hint = JSON_HINT if isinstance(value, str) and value.lstrip().startswith("[") else HISTORY_HINT
        raise _bad_history(name, value, form="[[question, answer], ...]", hint=hint)
    messages: list[Message] = []
    for index, turn in enumerate(rounds):
        if not isinstance(turn, list) or len(turn) != 2:
            raise _bad_history(f"{name}[{index}]", turn, form="[question, answer]", hint=HISTORY_HINT)
        messages.append(Message("user", text(turn[0], f"{name}[{index}][0]")))
        messages.append(Message("assistant", non_empty(turn[1], f"{name}[{index}][1]")))
    return tuple(messages)


def _bad_history(name: str, value: Any, *, form: str, hint: str) -> DataError:
    return DataError(f"{name!r} must be {form}, got {shown(value)}", hint=hint)


# Dialogues written as text


def _asked(question: str, name: str, settings: Data) -> Messages:
    """The question; of one that is a dialogue written as text its turns, if the settings say so."""
    speakers = list(SPEAKER.finditer(question))
    is_transcript = speakers and not question[: speakers[0].start()].strip() and speakers[0][1]
    if settings.transcripts == "text" or not is_transcript or all(found[1] for found in speakers):
        return (Message("user", question),)
    if settings.transcripts is None:
        raise DataError(
            f"{name!r} is a dialogue written as text, got {shown(question)}",
            hint="data.transcripts=turns reads it as turns, data.transcripts=text leaves it as it is",
        )
    ends = [*(found.start() for found in speakers[1:]), len(question)]
    said = [question[found.end() : end].strip() for found, end in zip(speakers, ends, strict=True)]
    if not said[-1] and not speakers[-1][1]:  # the place of the answer
        speakers.pop()
    return tuple(
        Message("user", words)
        if found[1]
        else Message("assistant", non_empty(words, f"{name}: {found[0].strip()}"))
        for found, words in zip(speakers, said, strict=False)
    )


# Rounds as turns


def firefly(row: RowObject) -> Messages:
    """`{conversation: [{human, assistant}]}`, a question and its answer a turn.

    Source: https://huggingface.co/datasets/YeungNLP/moss-003-sft-data.
    """
    form = 'a turn is like {"human": "...", "assistant": "..."}'
    turns = row["conversation"]
    if not isinstance(turns, list):
        raise DataError(f"'conversation' must be a list of turns, got {shown(turns)}", hint=form)
    found: list[Message] = []
    for index, turn in enumerate(turns):
        name = f"conversation[{index}]"
        missing = [key for key in ("human", "assistant") if not isinstance(turn, dict) or key not in turn]
        if missing:
            raise DataError(f"{name!r} has no {missing[0]!r}, got {shown(turn)}", hint=form)
        found.append(Message("user", text(turn["human"], f"{name}.human")))
        found.append(Message("assistant", non_empty(turn["assistant"], f"{name}.assistant")))
    return tuple(found)


def is_firefly(row: RowObject) -> bool:
    """Whether the turns in `conversation` are of the form `{human, assistant}`."""
    turns = decoded(row.get("conversation"))
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "human" in turns[0]
