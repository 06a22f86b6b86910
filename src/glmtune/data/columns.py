"""Columns of rows by name: reading them, errors for missing and unread ones, settings that name them."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from glmtune.errors import DataError
from glmtune.near import nearest
from glmtune.templates.reading import THOUGHT_KEYS
from glmtune.values import RowObject, shown

PLAIN_NAME = re.compile(r"[^\W\d][\w.]*")
# shlex.quote would also quote every letter beyond ASCII, such as the Chinese names of columns
SHELL_WORD = re.compile(r"[\w.=]+")
INPUTS = {
    "instruction",
    "instructions",
    "input",
    "inputs",
    "context",
    "contexts",
    "passage",
    "passages",
    "document",
    "documents",
}
SYSTEMS = {"system", "system_prompt", "system_message", "sys", "sys_prompt"}
HISTORIES = {"history", "histories"} | {
    f"{of}_history" for of in ("chat", "conversation", "dialog", "dialogue", "message")
}
MEDIA = {"image", "images", "image_path", "image_url", "video", "videos", "audio", "audios"}
CALLS = {"tool", "tools", "function", "functions", "function_call", "tool_call", "tool_calls"}
THOUGHTS = {
    *("reasoning_content", "reasoning", "thinking", "think", "thought", "thoughts"),
    *("cot", "chain_of_thought", "rationale"),
}
PREFERENCES = {"chosen", "rejected"}
MEANINGFUL = INPUTS | SYSTEMS | HISTORIES | MEDIA | CALLS | THOUGHTS | PREFERENCES
"""Names of columns that hold part of a conversation, as `_plain` spells them; unread they are an error."""


def column(row: RowObject, name: str) -> Any:
    """Return a column's cell. Raises `DataError` if the row has no such column."""
    if name not in row:
        raise missing(name, row)
    return row[name]


def missing(name: str, row: RowObject, pair: Sequence[str] = ()) -> DataError:
    """Return the error for a missing column; `pair`: the columns of question and answer looked for."""
    near = nearest(name, row)
    words = [nearest(column, row) or "..." for column in pair]
    naming = f": {name_pair(*words)}" if pair else " with data.prompt_column and data.response_column"
    return DataError(
        f"column {name!r} is missing; columns found: {names_of(row)}",
        hint=f"{f'did you mean {near!r}? Rename' if near else 'add'} it, or name the columns{naming}",
    )


def names_of(row: Collection[str]) -> str:
    """Return the names of a row's columns, for a message."""
    return ", ".join(map(shown, row)) or "none"


def name_pair(question: str, answer: str) -> str:
    """Return the settings that name the columns of question and answer, as a shell takes them."""
    return f"{setting('prompt_column', [question])} {setting('response_column', [answer])}"


def _plain(name: str) -> str:
    """Return a column's name in small letters, words joined by _; of `messages.name` only the key `name`."""
    return re.sub(r"[\s-]+", "_", name.rpartition(".")[2].strip().lower())


def carries_meaning(name: str) -> bool:
    """True if a column's name says that it holds part of the conversation."""
    return _plain(name) in MEANINGFUL


def listed(counts: Counter[str]) -> str:
    """Return columns and their numbers of rows in words: `'id' (1,000 rows), 'category' (1,000)`."""
    names = [f"{name!r} ({count:,}" for name, count in counts.most_common()]
    is_one = max(counts.values()) == 1
    return "), ".join([f"{names[0]} row{'' if is_one else 's'}", *names[1:]]) + ")"


def lost(counts: Counter[str], *, is_dialogue: bool) -> DataError:
    """Return the error for columns that carry meaning and are not read; its hint lists every way out."""
    names = list(counts)
    ways = dict.fromkeys(way for name in names if (way := _advise(name, is_dialogue=is_dialogue)))
    it = "them" if len(names) > 1 else "it"
    return DataError(
        f"columns that carry meaning, and nobody reads: {listed(counts)}",
        hint="; ".join([*ways, f"{setting('ignore_columns', names)} leaves {it} out"]),
    )


def _advise(name: str, *, is_dialogue: bool) -> str:
    """Return the advice that gets a column read, empty if there is none."""
    plain = _plain(name)
    if plain in MEDIA:
        return "these models read text alone: take such rows out"
    if plain in THOUGHT_KEYS:
        return "a thought stands in an assistant's turn, or beside question and answer"
    if plain in THOUGHTS and ("." in name or not is_dialogue):
        return f"rename {name.rpartition('.')[2]!r} to 'reasoning_content'"
    if "." in name:
        return ""
    if plain in SYSTEMS:
        return f"{setting('system_column', [name])} makes it the system text"
    if is_dialogue:
        return f"rename {name!r} to 'tools'" if plain == "functions" else ""
    if plain in INPUTS:
        return f"{setting('input_column', [name])} puts it below the question"
    if plain in HISTORIES:
        return f"{setting('history_column', [name])} reads it as earlier rounds"
    return "rows of messages can hold it" if plain in CALLS else ""


def setting(key: str, names: Sequence[str]) -> str:
    """Return the setting that names columns, as a shell takes it; a single plain name needs no brackets."""
    value = names[0]
    if len(names) > 1 or (key == "ignore_columns" and not PLAIN_NAME.fullmatch(value)):
        value = json.dumps(names, ensure_ascii=False)
        if all(map(PLAIN_NAME.fullmatch, names)):
            value = f"[{','.join(names)}]"
    word = f"data.{key}={value}"
    return word if SHELL_WORD.fullmatch(word) else shlex.quote(word)
