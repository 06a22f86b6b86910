"""Reads messages from dicts: OpenAI's form, and that of the ChatGLM3 and GLM-4 code with `metadata`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glmtune.errors import DataError
from glmtune.renamed import keyword_renamed
from glmtune.templates.messages import Message, Role
from glmtune.templates.tools import read_calls, read_tools
from glmtune.values import Fields, asked, shown, text

FORM = 'a message is like {"role": "user", "content": "..."}'
ROLE_NAMES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "observation": "observation",
    "tool": "observation",
    "function": "observation",
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
}
"""Role names of other programs -> our role, in any case; `developer` is OpenAI's later name of `system`."""
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "think")
"""Keys that hold the thought in front of an answer; transformers 5 knows the first three."""
_KNOWN = (
    *("role", "content", *THOUGHT_KEYS, "tool_calls", "function_call", "tool_call_id", "metadata", "tools"),
    *("loss", "weight"),
)
_WITHOUT_MEANING = ("name", "annotations")
"""Keys of OpenAI's messages that no chat format prints."""


@keyword_renamed("place", "where")
def messages_from_dicts(
    rows: Sequence[Mapping[str, Any] | Message],
    where: str = "messages",
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[Message]:
    """Read messages from dicts with `role`, `content` and the other keys of OpenAI and the official code.

    These are `reasoning_content`, `tool_calls`, `tool_call_id`, `metadata`, `loss`, and `tools` in a system
    turn. A key whose value is None counts as missing. The argument `tools` goes into the first system
    message. Raises `DataError` naming the message that is wrong.
    """
    if isinstance(rows, str | Mapping) or not isinstance(rows, Sequence):
        raise DataError(f"{where}: must be a list of messages, got {shown(rows)}", hint=FORM)
    if not rows:
        raise DataError(f"{where}: no message", hint=FORM)
    messages = []
    for index, row in enumerate(rows):
        if isinstance(row, Message):
            messages.append(row)
            continue
        # Fields notes every key that is read, so that a key nobody reads can be refused
        fields = Fields(row) if isinstance(row, Mapping) else row
        name = f"{where}[{index}]"
        message = read_message(fields, name)
        unread = sorted(set(fields.unread()) - set(_WITHOUT_MEANING))
        if unread:
            raise DataError(
                f"{name!r} holds {unread[0]!r}, which says nothing in a turn of role {message.role!r}",
                hint=f"known are {', '.join(_KNOWN)}, each in its role, and {', '.join(_WITHOUT_MEANING)}",
            )
        messages.append(message)
    return with_tools(messages, read_tools(tools, "tools"))


def with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> list[Message]:
    """Return the messages with the tools in a first system turn, a new one if none is there.

    Raises `DataError` if a turn lists tools already.
    """
    if tools is None:
        return list(messages)
    if any(message.tools is not None for message in messages):
        raise DataError("'tools' is given for all and by a system turn, got both", hint="keep one")
    if messages and messages[0].role == "system" and messages[0].content:
        return [replace(messages[0], tools=tools), *messages[1:]]
    return [Message("system", "", tools=tools), *messages]


def read_message(row: Mapping[str, Any], name: str) -> Message:
    """Read one message, called `name` in errors. Raises `DataError` for a missing or wrong value."""
    if not isinstance(row, Mapping):
        raise DataError(f"{name!r} must be an object, got {shown(row)}", hint=FORM)
    if row.get("role") is None:
        raise DataError(f"{name!r} has no 'role', got {', '.join(map(repr, row)) or 'nothing'}", hint=FORM)
    role = read_role(row["role"], f"{name}.role", ROLE_NAMES)
    loss = read_loss(row, name, role)
    if role == "assistant":
        return _answer(row, name, loss)
    call_id = row.get("tool_call_id")
    return Message(
        role,
        _content(row, name, role),
        metadata=_metadata(row, name),
        tools=_own_tools(row, name, role),
        call_id=call_id if isinstance(call_id, str) else None,
    )


def read_role(value: object, name: str, known: Mapping[str, Role]) -> Role:
    """Look a role up in `known`. Raises `DataError` for an unknown one."""
    role = known.get(value.strip().lower()) if isinstance(value, str) else None
    if role is None:
        raise DataError(f"{name!r} is no known role, got {shown(value)}", hint=f"known: {', '.join(known)}")
    return role


def read_loss(row: Mapping[str, Any], name: str, role: Role) -> bool:
    """Read the `loss` flag of a turn; `weight`, 0 or 1, is OpenAI's name for it."""
    key = "loss" if row.get("loss") is not None else "weight"
    value = row.get(key)
    if value is None:
        return True
    if value not in (False, True) or (key == "loss" and not isinstance(value, bool)):
        allowed = "true or false" if key == "loss" else "0 or 1"
        raise DataError(
            f"'{name}.{key}' must be {allowed}, got {shown(value)}", hint="it says if the turn is learned"
        )
    if value and role != "assistant" and key == "loss":
        raise DataError(
            f"'{name}.loss' is set in a turn of role {role!r}, got true",
            hint="only an assistant's turn can be learned: remove the flag",
        )
    return bool(value)


def _answer(row: Mapping[str, Any], name: str, loss: bool) -> Message:
    # `function_call` is OpenAI's older name, of a single call
    key = "tool_calls" if row.get("tool_calls") else "function_call"
    calls = tuple(read_calls(row[key], f"{name}.{key}")) if row.get(key) else ()
    metadata, thought = _metadata(row, name), read_thought(row, name)
    if calls and metadata.strip():
        raise DataError(
            f"{name!r} names a tool in 'metadata' and calls one in {key!r}, got both",
            hint="keep one of the two",
        )
    # OpenAI's answers without text have a null content: fine beside a call or a thought
    has_no_text = row.get("content") is None and (calls or thought is not None)
    return Message(
        "assistant",
        "" if has_no_text else _content(row, name, "assistant"),
        metadata=metadata,
        tools=_own_tools(row, name, "assistant"),
        loss=loss,
        thought=thought,
        calls=calls,
    )


def read_thought(row: Mapping[str, Any], name: str) -> str | None:
    """Read the thought of an answer from any of `THOUGHT_KEYS`. Raises `DataError` for two different ones."""
    keys = [key for key in THOUGHT_KEYS if row.get(key) is not None]
    if len({row[key] for key in keys if isinstance(row[key], str)}) > 1:
        raise DataError(
            f"{name!r} holds its thought twice, got {' and '.join(map(repr, keys))}", hint="keep one"
        )
    return text(row[keys[0]], f"{name}.{keys[0]}") if keys else None


def _content(row: Mapping[str, Any], name: str, role: Role) -> str:
    """Read a message's text: joins text parts, writes a tool's result object as JSON.

    A system text of null counts as empty.
    """
    if "content" not in row:
        raise DataError(f"{name!r} has no 'content', got {', '.join(map(repr, row))}", hint=FORM)
    value = row["content"]
    if isinstance(value, list) and value and all(_part(part) is not None for part in value):
        value = "".join(str(_part(part)) for part in value)
    elif role == "observation" and isinstance(value, Mapping):
        value = json.dumps(value, ensure_ascii=False)
    elif role == "system" and value is None:
        value = ""
    return (asked if role in ("user", "assistant") else text)(value, f"{name}.content")


def _part(part: object) -> str | None:
    """Return the text of one content part; None for an image or another kind."""
    if isinstance(part, Mapping) and part.get("type") == "text":
        part = part.get("text")
    return part if isinstance(part, str) else None


def _metadata(row: Mapping[str, Any], name: str) -> str:
    value = row.get("metadata")
    metadata = "" if value is None else text(value, f"{name}.metadata")
    if "\n" in metadata:
        raise DataError(f"'{name}.metadata' holds a line break", hint="metadata is one line, a tool's name")
    return metadata


def _own_tools(row: Mapping[str, Any], name: str, role: Role) -> Sequence[Mapping[str, Any]] | None:
    tools = row.get("tools")
    if not tools:
        return tools if role == "system" else None
    if role != "system":
        raise DataError(
            f"'{name}.tools' is in a turn of role {role!r}, got {shown(tools)}",
            hint="put the tools into the row's own `tools`, or into its system turn",
        )
    return read_tools(tools, f"{name}.tools")
