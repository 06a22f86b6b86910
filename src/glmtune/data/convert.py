"""Rows of one format written as rows of another: each format's writer, and the files they go into.

Every row is read back as the target's format before it is written: what would come back as another
conversation is an error that names the row, never a silent loss.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmtune.data.example import Example
from glmtune.data.formats import FORMATS, Messages, find_format
from glmtune.data.reader import Dataset, read_dataset
from glmtune.errors import ConfigError, DataError, OutputError
from glmtune.extras import require
from glmtune.recipe.settings import Data
from glmtune.run_files import replacing
from glmtune.templates import Call, Message, Role
from glmtune.templates.messages import unwrapped, wrapped

CSV_CELL_LIMIT = 131_072
"""What Python's csv module reads in one cell unless told otherwise; ours reads longer ones."""

Row = dict[str, Any]
Write = Callable[[Messages], Row]
WriteFile = Callable[[Path, Sequence[Row]], None]

DIALOGUES = "messages, sharegpt or chatglm3"
DIALOGUE_COLUMNS = ("messages", "conversations")


def convert_file(sources: Sequence[Path], target: Path, to: str, settings: Data) -> list[Dataset]:
    """Write the rows of the sources, one after another, to the new file `target`; return what was read.

    The target's suffix says what kind of file it is: .json, .jsonl, .csv, .tsv or .parquet. Raises
    `DataError` naming the row that the format `to` cannot hold, and `OutputError` where the target exists.
    """
    _check_target(target, to)
    datasets = [read_dataset(source, settings) for source in sources]
    write_examples(target, [example for dataset in datasets for example in dataset.examples], to)
    return datasets


def write_examples(target: Path, examples: Sequence[Example], to: str) -> None:
    """Write examples to a new file; errors as of `convert_file`."""
    write_file = _check_target(target, to)
    rows = [_written(example, to) for example in examples]
    with replacing(target) as partial:
        write_file(partial, rows)
        _check_new(target)  # reading a large file takes a while


def _check_target(target: Path, to: str) -> WriteFile:
    """What writes the rows of such a file. Raises an error unless it can be begun."""
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


def _written(example: Example, to: str) -> Row:
    try:
        row = WRITERS[to](example.messages)
        if find_format([row], Data(transcripts="text"))(row) != example.messages:
            raise _cannot(to, "this conversation: it would come back as another one")
    except DataError as err:
        raise DataError(f"{example.where}: {err}", hint=err.hint) from None
    return row


def _cannot(to: str, what: str) -> DataError:
    return DataError(f"{to} rows cannot hold {what}", hint=f"choose another format, such as {DIALOGUES}")


# Rows of two columns


def _pair(name: str) -> Write:
    question, answer = FORMATS[name].columns

    def write(messages: Messages) -> Row:
        system, turns = _split_system(messages)
        thought = turns[-1].thought
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
                raise _cannot(name, "tools")
        return row

    return write


def _split_system(messages: Messages) -> tuple[Message | None, Messages]:
    return (messages[0], messages[1:]) if messages[0].role == "system" else (None, messages)


def _check_rounds(name: str, turns: Sequence[Message]) -> None:
    for index, message in enumerate(turns):
        if message.role == "observation" or message.is_call:
            raise _cannot(name, "tool calls and observations")
        if message.role != ("user", "assistant")[index % 2]:
            raise _cannot(name, f"a turn of role {message.role!r} at this place (turn {index + 1})")
        if not message.loss:
            raise _cannot(name, "an answer that is not learned (loss: false)")
        if message.thought is not None:
            raise _cannot(name, "a thought beside its answer")


# Rows of rounds


def _firefly(messages: Messages) -> Row:
    system, turns = _split_system(messages)
    _check_rounds("firefly", turns)
    texts = [message.content for message in turns]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    row: Row = {"conversation": [{"human": asked, "assistant": said} for asked, said in pairs]}
    if system is not None:
        row["system"] = system.content
        if system.tools is not None:
            raise _cannot("firefly", "tools")
    return row


# Rows of turns


def _sharegpt(messages: Messages) -> Row:
    system, turns = _split_system(messages)
    row: Row = {"conversations": [turn for message in turns for turn in _sharegpt_turns(message)]}
    if system is not None and system.content:
        row["system"] = system.content
    if system is not None and system.tools is not None:
        row["tools"] = json.dumps([unwrapped(tool) for tool in system.tools], ensure_ascii=False)
    return row


SHAREGPT_NAMES: Mapping[Role, str] = {
    "system": "system",
    "user": "human",
    "assistant": "gpt",
    "observation": "observation",
}


def _sharegpt_turns(message: Message) -> list[Row]:
    """A turn's text, then each of its calls."""
    if message.metadata:
        raise _cannot("sharegpt", f"a call of {message.metadata!r} whose arguments are not named")
    turns: list[Row] = []
    if message.content or not message.calls:
        turns.append({"from": SHAREGPT_NAMES[message.role], "value": message.content})
    for call in message.calls:
        written = {"name": call.name, "arguments": call.arguments}
        turns.append({"from": "function_call", "value": json.dumps(written, ensure_ascii=False)})
    return _marked(turns, message)


def _marked(turns: list[Row], message: Message) -> list[Row]:
    """The turns that a message is written as: its thought in the first, its flag in all."""
    thought = {} if message.thought is None else {"reasoning_content": message.thought}
    flag = {} if message.loss else {"loss": False}
    return [{**turn, **(thought if turn is turns[0] else {}), **flag} for turn in turns]


def _chatglm3(messages: Messages) -> Row:
    """A turn's text, then each of its calls; one call and its only result are one turn, as in the script."""
    turns: list[Row] = []
    for index, message in enumerate(messages):
        before = messages[index - 1]
        is_only = [m.role for m in messages[index : index + 2]].count("observation") == 1
        if message.role == "observation" and len(before.calls) == 1 and is_only:
            turns[-1]["observation"] = message.content
        else:
            turns += _chatglm3_turns(message)
    return _with_tools(messages, turns, wrap=False)


def _chatglm3_turns(message: Message) -> list[Row]:
    turns = [_plain_turn(message)] if message.content or not message.calls else []
    turns += [{"role": "tool", "name": call.name, "parameters": call.arguments} for call in message.calls]
    return _marked(turns, message)


def _plain_turn(message: Message) -> Row:
    named = {"metadata": message.metadata} if message.metadata else {}
    return {"role": message.role, **named, "content": message.content}


def _messages(messages: Messages) -> Row:
    turns: list[Row] = []
    waiting: list[str] = []
    for index, message in enumerate(messages):
        (turn,) = _marked([_plain_turn(message)], message)
        if message.calls:
            waiting = [f"call_{index}_{where}" for where in range(len(message.calls))]
            turn["content"] = message.content or None
            turn["tool_calls"] = [
                _openai_call(call, call_id) for call, call_id in zip(message.calls, waiting, strict=True)
            ]
        if message.role == "observation":
            turn["role"] = "tool"
            if waiting:
                turn["tool_call_id"] = waiting.pop(0)
        turns.append(turn)
    return _with_tools(messages, turns, wrap=True)


def _openai_call(call: Call, call_id: str) -> Row:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _with_tools(messages: Messages, turns: list[Row], *, wrap: bool) -> Row:
    """A row of turns; a system turn that holds nothing but the tools is not written."""
    system, _ = _split_system(messages)
    column = "messages" if wrap else "conversations"
    if system is None or system.tools is None:
        return {column: turns}
    tools = [wrapped(tool) if wrap else unwrapped(tool) for tool in system.tools]
    return {column: turns if system.content else turns[1:], "tools": tools}


WRITERS: Mapping[str, Write] = {
    **{name: _pair(name) for name, known in FORMATS.items() if not known.is_dialogue},
    "messages": _messages,
    "sharegpt": _sharegpt,
    "chatglm3": _chatglm3,
    "firefly": _firefly,
}
"""What writes a conversation as a row, by the name of the format."""


# Files


def _write_array(path: Path, rows: Sequence[Row]) -> None:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    _write_text(path, f"[\n{lines}\n]\n")


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    _write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_csv(path: Path, rows: Sequence[Row], *, delimiter: str = ",") -> None:
    columns = _columns(rows)
    if len(columns) == 1:  # one column alone could be any text file
        columns = [*columns, "tools"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        for row in rows:
            writer.writerow(_csv_cell(row.get(name)) for name in columns)


def _write_tsv(path: Path, rows: Sequence[Row]) -> None:
    _write_csv(path, rows, delimiter="\t")


def _csv_cell(value: Any) -> str:
    cell = _cell(value)
    if len(cell) > CSV_CELL_LIMIT:
        raise DataError(
            f"a cell of {len(cell):,} characters, readers of CSV take at most {CSV_CELL_LIMIT:,}",
            hint="write a .jsonl or .parquet file",
        )
    return cell


def _cell(value: Any) -> str:
    """Text as it is, lists as JSON, nothing as no text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    pyarrow, parquet = require("pyarrow", extra="parquet"), require("pyarrow.parquet", extra="parquet")
    table = {name: [_typed(name, row.get(name)) for row in rows] for name in _columns(rows)}
    parquet.write_table(pyarrow.table(table), str(path))


def _typed(name: str, value: Any) -> Any:
    """What a column of one type can hold: descriptions and arguments, each of its own shape, as JSON text."""
    if name in ("tools", "parameters") and value is not None:
        return _cell(value)
    if isinstance(value, list) and value and isinstance(value[0], dict) and name in DIALOGUE_COLUMNS:
        return [{key: _typed(key, item) for key, item in turn.items()} for turn in value]
    return value


def _columns(rows: Sequence[Row]) -> list[str]:
    """Every column of any row, in the order of their first row."""
    return list({name: None for row in rows for name in row})


FILES: Mapping[str, WriteFile] = {
    ".json": _write_array,
    ".jsonl": _write_lines,
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".parquet": _write_parquet,
}
"""What writes rows, by the file's suffix."""
