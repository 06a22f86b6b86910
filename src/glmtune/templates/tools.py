"""Reads tool descriptions and tool calls in all spellings that messages and rows use.

A description is OpenAI's `{"type": "function", "function": {...}}` or the bare function; each chat format
prints the one that its models know. Only a chat format turns a `Call` into text: ChatGLM3 writes Python,
GLM-4 JSON, GLM-4.5 tags.
"""

import ast
import json
from collections.abc import Mapping
from typing import Any

from glmtune.errors import DataError
from glmtune.templates.messages import Call, unwrapped
from glmtune.values import decoded, is_filled, shown, text

CODE_BLOCK = "```"
CALL = 'a call is like {"name": "get_weather", "arguments": {"city": "北京"}}'
TOOLS = 'a list like [{"name": "get_weather", "description": "...", "parameters": {...}}]'


# Descriptions


def read_tools(value: object, name: str) -> list[dict[str, Any]] | None:
    """Read the tool descriptions of a list or its JSON text, unchanged; None if there are none.

    Raises `DataError` for anything else, and for a description without a name.
    """
    tools = list(value) if isinstance(value, tuple) else decoded(value)
    if tools is None or tools == "" or tools == []:
        return None
    if not isinstance(tools, list):
        raise DataError(f"{name!r} must be {TOOLS}, got {shown(value)}", hint="write the tools as a list")
    for index, tool in enumerate(tools):
        where = f"{name}[{index}]"
        function = unwrapped(tool) if isinstance(tool, Mapping) else {}
        has_name = isinstance(function.get("name"), str) and function["name"].strip()
        # a tool of another type, such as GLM-4's built-in ones, has none
        if not has_name and function.get("type") in (None, "function"):
            raise DataError(
                f"{where!r} must be a tool with a name, got {shown(tool)}", hint=f"tools are {TOOLS}"
            )
        _check_text(tool, where)
    return [dict(tool) for tool in tools]


# Calls


def read_calls(value: object, name: str) -> list[Call]:
    """Read the call, or list of calls, of ShareGPT's `function_call` or OpenAI's `tool_calls`."""
    one_or_more = decoded(value)
    calls = one_or_more if isinstance(one_or_more, list) else [one_or_more]
    if not calls:
        raise DataError(f"{name!r} holds no call", hint=CALL)
    return [
        _call(call, f"{name}[{index}]" if isinstance(one_or_more, list) else name)
        for index, call in enumerate(calls)
    ]


def _call(value: Any, name: str) -> Call:  # Any: parsed JSON, checked key by key
    inner = value.get("function") if isinstance(value, Mapping) else None
    call = inner if isinstance(inner, Mapping) else value
    if not isinstance(call, Mapping) or "name" not in call:
        raise DataError(f"{name!r} must be a call, got {shown(value)}", hint=CALL)
    unread = _unread(value) or _unread(call)
    found = [call[key] for key in _ARGUMENTS if is_filled(call.get(key))]
    if unread or len(found) > 1:
        what = f"{unread[0]!r}, which nobody reads" if unread else "its arguments twice"
        raise DataError(f"{name!r} holds {what}, got {shown(value)}", hint=CALL)
    arguments = decoded(found[0]) if found else {}
    if not isinstance(arguments, Mapping):
        raise DataError(f"'{name}.arguments' must be an object, got {shown(found[0])}", hint=CALL)
    _check_text(arguments, f"{name}.arguments")
    identity = value.get("id")
    return Call(
        tool_name(call["name"], f"{name}.name"), arguments, identity if isinstance(identity, str) else None
    )


def _unread(part: Mapping[str, Any]) -> list[str]:
    """Return the filled keys of a call that no reader knows."""
    return [key for key, value in part.items() if key not in _CALL_KEYS and is_filled(value)]


_ARGUMENTS = ("arguments", "parameters")
_CALL_KEYS = {"id", "type", "index", "function", "name", *_ARGUMENTS}


def tool_name(value: object, name: str) -> str:
    """Read a tool's name. Raises `DataError` unless it is one line and not blank."""
    line = text(value, name).strip()
    if not line or "\n" in line:
        raise DataError(f"{name!r} must be a tool's name, got {shown(value)}", hint="a name is one line")
    return line


def _check_text(value: object, name: str) -> None:
    """Raise `DataError` for half characters anywhere inside, and for numbers that JSON does not have."""
    try:
        written = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        raise DataError(
            f"{name!r} holds NaN or infinity, got {shown(value)}", hint="write null, or a number"
        ) from None
    text(written, name)


def call_in_answer(answer: str) -> Call | None:
    """Parse a tool call that an assistant wrote as plain text; None if the text is none.

    Either `{"name": ..., "arguments": ...}`, or the tool's name on a line of its own and the arguments below.
    """
    found = decoded(answer.strip())
    if isinstance(found, dict) and isinstance(found.get("name"), str):
        try:
            return _call(found, "call")
        except DataError:
            return None
    first, _, rest = answer.strip().partition("\n")
    arguments = read_arguments(rest)
    return Call(first.strip(), arguments) if first.strip() and arguments is not None else None


def read_arguments(content: str) -> Mapping[str, Any] | None:
    """Parse the arguments behind a tool's name: GLM-4's JSON object or ChatGLM3's code block; else None."""
    content = content.strip()
    if content.startswith("{"):
        found = decoded(content)
        return found if isinstance(found, dict) else None
    lines = content.split("\n")
    if len(lines) < 3 or not lines[0].startswith(CODE_BLOCK) or lines[-1].strip() != CODE_BLOCK:
        return None
    return _keywords("\n".join(lines[1:-1]).strip())


def _keywords(code: str) -> dict[str, Any] | None:
    """Return the keyword arguments of the code `tool_call(x=1)`; the code is parsed, never run."""
    try:
        call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "tool_call" or call.args:
            return None
        arguments: dict[str, Any] = {}
        for word in call.keywords:
            value = ast.literal_eval(word.value)
            arguments |= {word.arg: value} if word.arg is not None else value  # `**{...}` has no name
        # Python has values that JSON cannot hold, such as tuples and sets
        return arguments if json.loads(json.dumps(arguments)) == arguments else None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # as literal_eval documents
        return None
