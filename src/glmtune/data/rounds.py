"""Read rows of one question and one answer, with history and system text; and rows that list rounds."""

import re

from glmtune.data.columns import read_column
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message
from glmtune.templates.reading import read_thought
from glmtune.values import RowObject, asked, decoded, non_empty, shown, text

Messages = tuple[Message, ...]

HISTORY_HINT = "a history is a list of earlier rounds, each a list of a question and its answer"
JSON_HINT = 'in a cell a history is JSON, with double quotes: [["...", "..."]]'
SPEAKER = re.compile(
    r"^[^\S\n]*(?:(human|user|用户)|assistant|bot|助手)\s*[:：]", re.IGNORECASE | re.MULTILINE
)
"""The speaker's name at the start of a line, in a dialogue written as text; group 1 is set for a person.

Source: https://huggingface.co/datasets/BelleGroup/multiturn_chat_0.8M."""


def question_and_answer(
    row: RowObject, columns: tuple[str, ...], input_column: str | None, settings: Data
) -> Messages:
    """Return system text, earlier rounds, question (a filled input below it, on a new line) and answer.

    A thought is read from its own column. An empty question is kept, an empty answer is an error.
    """
    question_column, answer_column = columns
    question = asked(read_column(row, question_column), question_column)
    input_column = settings.input_column or input_column
    if input_column is not None:
        # a column that the settings name must be there, the format's own `input` may be missing
        value = read_column(row, input_column) if settings.input_column else row.get(input_column)
        below = "" if value is None else text(value, input_column)
        if below.strip():
            question = f"{question}\n{below}" if question else below
    content = non_empty(read_column(row, answer_column), answer_column)
    answer = Message("assistant", content, thought=read_thought(row, "row"))
    earlier = history(row, settings.history_column)
    return *system(row, settings), *earlier, *_question_turns(question, question_column, settings), answer


def system(row: RowObject, settings: Data) -> Messages:
    """Return the system message of a row's own column, empty if the row has none."""
    name = settings.system_column or "system"
    value = read_column(row, name) if settings.system_column else row.get(name)
    if value is None or not text(value, name).strip():
        return ()
    if settings.system is not None:
        raise two_systems("by the row and by data.system")
    return (Message("system", value),)


def two_systems(where: str) -> DataError:
    """Return the error for a second system text; `where` names the two."""
    return DataError(
        f"'system' is given {where}, got both",
        hint="keep one: leave data.system unset, or remove the row's own",
    )


def history(row: RowObject, named: str | None) -> Messages:
    """Return the earlier rounds, `[[question, answer], ...]`; a missing or empty cell is no history."""
    name = named or "history"
    value = read_column(row, name) if named else row.get(name)
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
        messages.append(Message("user", asked(turn[0], f"{name}[{index}][0]")))
        messages.append(Message("assistant", non_empty(turn[1], f"{name}[{index}][1]")))
    return tuple(messages)


def _bad_history(name: str, value: object, *, form: str, hint: str) -> DataError:
    return DataError(f"{name!r} must be {form}, got {shown(value)}", hint=hint)


# Dialogues written as text


def _question_turns(question: str, name: str, settings: Data) -> Messages:
    """Return the question as one message, or as turns if it is a dialogue written as text.

    Raises `DataError` for such a dialogue unless `data.transcripts` says how to read it.
    """
    speakers = list(SPEAKER.finditer(question))
    # a dialogue begins with a person's turn, nothing before it, and the assistant speaks in it too
    is_transcript = speakers and not question[: speakers[0].start()].strip() and speakers[0][1]
    if settings.transcripts == "text" or not is_transcript or all(speaker[1] for speaker in speakers):
        return (Message("user", question),)
    if settings.transcripts is None:
        raise DataError(
            f"{name!r} is a dialogue written as text, got {shown(question)}",
            hint="data.transcripts=turns reads it as turns, data.transcripts=text leaves it as it is",
        )
    ends = [*(speaker.start() for speaker in speakers[1:]), len(question)]
    words = [question[speaker.end() : end].strip() for speaker, end in zip(speakers, ends, strict=True)]
    if not words[-1] and not speakers[-1][1]:  # an empty "Assistant:" at the end: the answer follows it
        speakers.pop()
    return tuple(
        Message("user", content)
        if speaker[1]
        else Message("assistant", non_empty(content, f"{name}: {speaker[0].strip()}"))
        for speaker, content in zip(speakers, words, strict=False)
    )


# Rows of rounds


def firefly(row: RowObject) -> Messages:
    """Read a Firefly row, `{conversation: [{human, assistant}]}`: each item is a question and its answer.

    Source: https://huggingface.co/datasets/YeungNLP/moss-003-sft-data.
    """
    form = 'a turn is like {"human": "...", "assistant": "..."}'
    turns = row["conversation"]
    if not isinstance(turns, list):
        raise DataError(f"'conversation' must be a list of turns, got {shown(turns)}", hint=form)
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        name = f"conversation[{index}]"
        missing = [key for key in ("human", "assistant") if not isinstance(turn, dict) or key not in turn]
        if missing:
            raise DataError(f"{name!r} has no {missing[0]!r}, got {shown(turn)}", hint=form)
        messages.append(Message("user", asked(turn["human"], f"{name}.human")))
        messages.append(Message("assistant", non_empty(turn["assistant"], f"{name}.assistant")))
    return tuple(messages)


def is_firefly(row: RowObject) -> bool:
    """True if the turns in `conversation` have the form `{human, assistant}`."""
    turns = decoded(row.get("conversation"))
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "human" in turns[0]
