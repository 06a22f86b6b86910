"""Convert rows from one format to another: a writer for each row format and for each kind of file.

Every row is read back in the target format before it is written. If the conversation changed on the way,
an error names the row: nothing is lost silently.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from glmtune.data.example import Example
from glmtune.data.formats import FORMATS, Messages, find_format
from glmtune.data.reader import Dataset, read_dataset
from glmtune.errors import ConfigError, DataError, OutputError
from glmtune.extras import require
from glmtune.recipe.settings import Data
from glmtune.run_files import replacing
from glmtune.templates import Message, Role
from glmtune.templates.messages import unwrapped, wrapped

CSV_CELL_LIMIT = 131_072
"""Characters that Python's csv module reads in one cell by default; glmtune's reader takes longer cells."""

Row = dict[str, Any]
"""A row as JSON has it: column -> cell."""
Write = Callable[[Messages], Row]
"""Turns a conversation into a row of one format. Raises `DataError` for what the format cannot hold."""
WriteFile = Callable[[Path, Sequence[Row]], None]
"""Writes rows into a new file."""

DIALOGUES = "messages, sharegpt or chatglm3"
DIALOGUE_COLUMNS = ("messages", "conversations")


def convert_file(sources: Sequence[Path], target: Path, to: str, settings: Data) -> list[Dataset]:
    """Write the rows of all sources, in order, to a new file in the format `to`; return the data sets read.

    The target's suffix says which kind of file to write: .json, .jsonl, .csv, .tsv or .parquet. Raises
    `DataError` naming a row that the format `to` cannot hold, and `OutputError` if the target exists.
    """
    _check_target(target, to)
    datasets = [read_dataset(source, settings) for source in sources]
    write_examples(target, [example for dataset in datasets for example in dataset.examples], to)
    return datasets


def write_examples(target: Path, examples: Sequence[Example], to: str) -> None:
    """Write examples to a new file in the format `to`; errors as of `convert_file`."""
    write_file = _check_target(target, to)
    rows = []
    for example in examples:
        try:
            row = WRITERS[to](example.messages)
            # transcripts="text": a question that looks like a dialogue is read back as the text it is
            if find_format([row], Data(transcripts="text"))(row) != example.messages:
                raise _cannot_hold(to, "this conversation: it would come back as another one")
        except DataError as err:
            raise DataError(f"{example.where}: {err}", hint=err.hint) from None
        rows.append(row)
    with replacing(target) as unfinished:
        write_file(unfinished, rows)
        _check_new(target)  # again: someone may have created it while a large file was written


def _check_target(target: Path, to: str) -> WriteFile:
    """Return the writer for the target's suffix. Raises an error for an unknown format or kind of file."""
    if to not in WRITERS:
        raise ConfigError(f"to: unknown format {to!r}", hint="choose one of " + ", ".join(WRITERS))
    write_file = FILES.get(target.suffix.lower())
    if write_file is None:
        raise ConfigError(f"{target}: not a kind of file for rows", hint="end it with " + ", ".join(FILES))
    _check_new(target)
    return write_file


def _check_new(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise OutputError(f"{target}: exists already", hint="choose a new name, or remove it first")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: there is no folder {target.parent}", hint="create it first")


def _cannot_hold(to: str, what: str) -> DataError:
    return DataError(f"{to} rows cannot hold {what}", hint=f"choose another format, such as {DIALOGUES}")


# Rows of two columns


def _pair_writer(name: str) -> Write:
    """Return the writer of a format with one column for the question and one for the answer."""
    question, answer = FORMATS[name].columns

    def write(messages: Messages) -> Row:
        system, turns = _split_system(messages)
        thought = turns[-1].thought
        # only the last answer's thought has a column; earlier rounds are texts in `history`
        _check_rounds(name, [*turns[:-1], replace(turns[-1], thought=None)])
        texts = [message.content for message in turns]
        row: Row = {question: texts[-2], answer: texts[-1]}
        if thought is not None:
            row["reasoning_content"] = thought
        if len(texts) > 2:
            row["history"] = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
        if system is not None:
            row["system"] = system.content
            if system.tools is not None:
                raise _cannot_hold(name, "tools")
        return row

    return write


def _split_system(messages: Messages) -> tuple[Message | None, Messages]:
    return (messages[0], messages[1:]) if messages[0].role == "system" else (None, messages)


def _check_rounds(name: str, turns: Sequence[Message]) -> None:
    """Raise `DataError` unless the turns are plain questions and learned answers, one after the other."""
    for index, message in enumerate(turns):
        if message.role == "observation" or message.is_call:
            raise _cannot_hold(name, "tool calls and observations")
        if message.role != ("user", "assistant")[index % 2]:
            raise _cannot_hold(name, f"a turn of role {message.role!r} at this place (turn {index + 1})")
        if not message.loss:
            raise _cannot_hold(name, "an answer that is not learned (loss: false)")
        if message.thought is not None:
            raise _cannot_hold(name, "a thought beside its answer")


# Rows of rounds


def _write_firefly(messages: Messages) -> Row:
    system, turns = _split_system(messages)
    _check_rounds("firefly", turns)
    texts = [message.content for message in turns]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    row: Row = {"conversation": [{"human": question, "assistant": answer} for question, answer in pairs]}
    if system is not None:
        row["system"] = system.content
        if system.tools is not None:
            raise _cannot_hold("firefly", "tools")
    return row


# Rows of turns


SHAREGPT_NAMES: Mapping[Role, str] = {
    "system": "system",
    "user": "human",
    "assistant": "gpt",
    "observation": "observation",
}


def _write_sharegpt(messages: Messages) -> Row:
    """Write a message as a turn of its text, then a turn for each of its calls."""
    system, others = _split_system(messages)
    turns: list[Row] = []
    for message in others:
        if message.metadata:
            raise _cannot_hold("sharegpt", f"a call of {message.metadata!r} whose arguments are not named")
        written: list[Row] = []
        if message.content or not message.calls:
            written.append({"from": SHAREGPT_NAMES[message.role], "value": message.content})
        for call in message.calls:
            value = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
            written.append({"from": "function_call", "value": value})
        turns += _with_thought_and_flag(written, message)
    row: Row = {"conversations": turns}
    if system is not None and system.content:
        row["system"] = system.content
    if system is not None and system.tools is not None:
        row["tools"] = json.dumps([unwrapped(tool) for tool in system.tools], ensure_ascii=False)
    return row


def _with_thought_and_flag(turns: list[Row], message: Message) -> list[Row]:
    """Add a message's thought to the first of the turns that it is written as, and its `loss` flag to all."""
    thought = {} if message.thought is None else {"reasoning_content": message.thought}
    flag = {} if message.loss else {"loss": False}
    return [{**turn, **(thought if turn is turns[0] else {}), **flag} for turn in turns]


def _write_chatglm3(messages: Messages) -> Row:
    """Write a message as its text, then each of its calls; one call and its only result share a turn."""
    turns: list[Row] = []
    for index, message in enumerate(messages):
        before = messages[index - 1]
        is_only_result = [m.role for m in messages[index : index + 2]].count("observation") == 1
        if message.role == "observation" and len(before.calls) == 1 and is_only_result:
            # the form of ChatGLM3's own script: {"role": "tool", "name", "parameters", "observation"}
            turns[-1]["observation"] = message.content
            continue
        written = [_plain_turn(message)] if message.content or not message.calls else []
        written += [
            {"role": "tool", "name": call.name, "parameters": call.arguments} for call in message.calls
        ]
        turns += _with_thought_and_flag(written, message)
    return _with_tools(messages, turns, wrap=False)


def _plain_turn(message: Message) -> Row:
    named = {"metadata": message.metadata} if message.metadata else {}
    return {"role": message.role, **named, "content": message.content}


def _write_messages(messages: Messages) -> Row:
    """Write messages in OpenAI's form, with made-up call ids: a result follows its calls in their order."""
    turns: list[Row] = []
    unanswered_ids: list[str] = []
    for index, message in enumerate(messages):
        (turn,) = _with_thought_and_flag([_plain_turn(message)], message)
        if message.calls:
            unanswered_ids = [f"call_{index}_{number}" for number in range(len(message.calls))]
            turn["content"] = message.content or None
            turn["tool_calls"] = []
            for call, call_id in zip(message.calls, unanswered_ids, strict=True):
                arguments = json.dumps(call.arguments, ensure_ascii=False)
                function = {"name": call.name, "arguments": arguments}
                turn["tool_calls"].append({"id": call_id, "type": "function", "function": function})
        if message.role == "observation":
            turn["role"] = "tool"
            if unanswered_ids:
                turn["tool_call_id"] = unanswered_ids.pop(0)
        turns.append(turn)
    return _with_tools(messages, turns, wrap=True)


def _with_tools(messages: Messages, turns: list[Row], *, wrap: bool) -> Row:
    """Return the row of the turns and tools; a system turn that holds only the tools is not written."""
    system, _ = _split_system(messages)
    column = "messages" if wrap else "conversations"
    if system is None or system.tools is None:
        return {column: turns}
    tools = [wrapped(tool) if wrap else unwrapped(tool) for tool in system.tools]
    return {column: turns if system.content else turns[1:], "tools": tools}


WRITERS: Mapping[str, Write] = {
    **{name: _pair_writer(name) for name, known in FORMATS.items() if not known.is_dialogue},
    "messages": _write_messages,
    "sharegpt": _write_sharegpt,
    "chatglm3": _write_chatglm3,
    "firefly": _write_firefly,
}
"""The writer of each row format, by the format's name."""


# Files


def _write_json(path: Path, rows: Sequence[Row], *, is_array: bool) -> None:
    """Write one row a line: JSON lines, or with brackets and commas around them one array."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "[\n" + ",\n".join(lines) + "\n]\n" if is_array else "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_csv(path: Path, rows: Sequence[Row], *, delimiter: str) -> None:
    columns = _columns(rows)
    if len(columns) == 1:  # one column alone could be any text file
        columns = [*columns, "tools"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        for row in rows:
            cells = ["" if row.get(name) is None else _as_text(row[name]) for name in columns]
            too_long = next((cell for cell in cells if len(cell) > CSV_CELL_LIMIT), None)
            if too_long is not None:
                raise DataError(
                    f"a cell of {len(too_long):,} characters, readers of CSV take at most {CSV_CELL_LIMIT:,}",
                    hint="write a .jsonl or .parquet file",
                )
            writer.writerow(cells)


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    pyarrow, parquet = require("pyarrow", extra="parquet"), require("pyarrow.parquet", extra="parquet")
    table = {name: [_parquet_cell(name, row.get(name)) for row in rows] for name in _columns(rows)}
    parquet.write_table(pyarrow.table(table), str(path))


def _parquet_cell(name: str, value: object) -> object:
    """Return a cell of the one type that a parquet column has.

    Tools' descriptions and calls' arguments have a shape of their own in each row: they become JSON text.
    """
    if name in ("tools", "parameters") and value is not None:
        return _as_text(value)
    if isinstance(value, list) and value and isinstance(value[0], dict) and name in DIALOGUE_COLUMNS:
        return [{key: _parquet_cell(key, item) for key, item in turn.items()} for turn in value]
    return value


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _columns(rows: Sequence[Row]) -> list[str]:
    """Return every column of any row, in the order of first appearance."""
    return list({name: None for row in rows for name in row})


FILES: Mapping[str, WriteFile] = {
    ".json": partial(_write_json, is_array=True),
    ".jsonl": partial(_write_json, is_array=False),
    ".csv": partial(_write_csv, delimiter=","),
    ".tsv": partial(_write_csv, delimiter="\t"),
    ".parquet": _write_parquet,
}
"""The writer of each kind of file, by the file's suffix."""
