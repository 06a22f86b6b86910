"""Tools and their calls: each of the spellings that messages and rows use becomes a description or a call.

A description is OpenAI's `{"type": "function", "function": {...}}` or the bare function; each chat format
prints the one that its models know. Only a chat format turns a call into text: ChatGLM3 writes Python, GLM-4
JSON, GLM-4.5 tags.
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


def read_tools(value: Any, name: str) -> list[dict[str, Any]] | None:
    """The descriptions in `tools`, a list or its JSON text, as they are; None where there are none.

    Raises `DataError` for one without a name, and for anything else.
    """
    tools = list(value) if isinstance(value, tuple) else decoded(value)
    if tools is None or tools == "" or tools == []:
        return None
    if not isinstance(tools, list):
        raise DataError(f"{name!r} must be {TOOLS}, got {shown(value)}", hint="write the tools as a list")
    return [_checked(tool, f"{name}[{index}]") for index, tool in enumerate(tools)]


def _checked(tool: Any, name: str) -> dict[str, Any]:
    """The description of a function, which has a name, or of a tool of another type."""
    found = unwrapped(tool) if isinstance(tool, Mapping) else {}
    named = isinstance(found.get("name"), str) and found["name"].strip()
    if not named and found.get("type") in (None, "function"):
        raise DataError(f"{name!r} must be a tool with a name, got {shown(tool)}", hint=f"tools are {TOOLS}")
    _check_text(tool, name)
    return dict(tool)


# Calls


def read_calls(value: Any, name: str) -> list[Call]:
    """The call, or list of calls, of ShareGPT's `function_call` or OpenAI's `tool_calls`."""
    found = decoded(value)
    calls = found if isinstance(found, list) else [found]
    if not calls:
        raise DataError(f"{name!r} holds no call", hint=CALL)
    return [
        _call(call, f"{name}[{index}]" if isinstance(found, list) else name)
        for index, call in enumerate(calls)
    ]


def _call(value: Any, name: str) -> Call:
    inner = value.get("function") if isinstance(value, Mapping) else None
    call = inner if isinstance(inner, Mapping) else value
    if not isinstance(call, Mapping) or "name" not in call:
        raise DataError(f"{name!r} must be a call, got {shown(value)}", hint=CALL)
    odd = _unread(value) or _unread(call)
    given = [call[key] for key in _ARGUMENTS if is_filled(call.get(key))]
    if odd or len(given) > 1:
        what = f"{odd[0]!r}, which nobody reads" if odd else "its arguments twice"
        raise DataError(f"{name!r} holds {what}, got {shown(value)}", hint=CALL)
    arguments = decoded(given[0]) if given else {}
    if not isinstance(arguments, Mapping):
        raise DataError(f"'{name}.arguments' must be an object, got {shown(given[0])}", hint=CALL)
    _check_text(arguments, f"{name}.arguments")
    identity = value.get("id")
    return Call(
        tool_name(call["name"], f"{name}.name"), arguments, identity if isinstance(identity, str) else None
    )


def _unread(part: Mapping[str, Any]) -> list[str]:
    """The filled keys of a call that are none of a call's."""
    return [key for key, value in part.items() if key not in _CALL_KEYS and is_filled(value)]


_ARGUMENTS = ("arguments", "parameters")
_CALL_KEYS = {"id", "type", "index", "function", "name", *_ARGUMENTS}


def tool_name(value: Any, name: str) -> str:
    """A tool's name: one line, not blank."""
    found = text(value, name).strip()
    if not found or "\n" in found:
        raise DataError(f"{name!r} must be a tool's name, got {shown(value)}", hint="a name is one line")
    return found


def _check_text(value: Any, name: str) -> None:
    """Refuse half characters anywhere inside, and numbers that JSON does not have."""
    try:
        written = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        raise DataError(
            f"{name!r} holds NaN or infinity, got {shown(value)}", hint="write null, or a number"
        ) from None
    text(written, name)


def call_in_answer(answer: str) -> Call | None:
    """The call that an assistant wrote as plain text before an observation, if it can be read.

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
    """The arguments that follow a tool's name: GLM-4's JSON object, or ChatGLM3's code block; else None."""
    content = content.strip()
    if content.startswith("{"):
        found = decoded(content)
        return found if isinstance(found, dict) else None
    lines = content.split("\n")
    if len(lines) < 3 or not lines[0].startswith(CODE_BLOCK) or lines[-1].strip() != CODE_BLOCK:
        return None
    return _keywords("\n".join(lines[1:-1]).strip())


def _keywords(code: str) -> dict[str, Any] | None:
    """The arguments of `tool_call(x=1)`, read and never run."""
    try:
        call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "tool_call" or call.args:
            return None
        found: dict[str, Any] = {}
        for word in call.keywords:
            value = ast.literal_eval(word.value)
            found |= {word.arg: value} if word.arg is not None else value
        return found if json.loads(json.dumps(found)) == found else None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # as literal_eval documents
        return None
