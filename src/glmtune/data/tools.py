"""Tools and their calls: each of the spellings that rows use becomes the one that messages hold.

A function is described as `{"name", "description", "parameters"}`; a call is its name and its arguments.
Only a chat format turns a call into text, since ChatGLM3 writes Python and GLM-4 writes JSON.
"""

import ast
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from glmtune.data.values import decoded, shown, text
from glmtune.errors import DataError

CODE_BLOCK = "```"
CALL = 'a call is like {"name": "get_weather", "arguments": {"city": "北京"}}'
TOOLS = 'a list like [{"name": "get_weather", "description": "...", "parameters": {...}}]'


class Call(NamedTuple):
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None
    """What its observation names in the `tool_call_id` of OpenAI's messages."""


# Descriptions


def read_tools(value: Any, name: str) -> list[dict[str, Any]] | None:
    """The descriptions in a row's `tools`, a list or its JSON text; None where there are none."""
    tools = decoded(value)
    if tools is None or tools == "" or tools == []:
        return None
    if not isinstance(tools, list):
        raise DataError(f"{name!r} must be {TOOLS}, got {shown(value)}", hint="write the tools as a list")
    return [_described(tool, f"{name}[{index}]") for index, tool in enumerate(tools)]


def _described(value: Any, name: str) -> dict[str, Any]:
    """OpenAI's `{"type": "function", "function": {...}}` is unpacked; a tool of another type stays."""
    tool = dict(value) if isinstance(value, dict) else {}
    if isinstance(tool.get("function"), dict):
        tool = dict(tool["function"])
    if isinstance(tool.get("name"), str) and tool["name"].strip():
        found = {key: item for key, item in tool.items() if (key, item) != ("type", "function")}
    elif isinstance(tool.get("type"), str) and tool["type"] != "function":
        found = tool
    else:
        raise DataError(f"{name!r} must be a tool with a name, got {shown(value)}", hint=f"tools are {TOOLS}")
    _check_text(found, name)
    return found


def wrapped(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A description as OpenAI writes it."""
    return {"type": "function", "function": dict(tool)} if "name" in tool else dict(tool)


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
    inner = value.get("function") if isinstance(value, dict) else None
    call = inner if isinstance(inner, dict) else value
    if not isinstance(call, dict) or "name" not in call:
        raise DataError(f"{name!r} must be a call, got {shown(value)}", hint=CALL)
    given = call.get("arguments", call.get("parameters"))
    arguments = {} if given is None or given == "" else decoded(given)
    if not isinstance(arguments, dict):
        raise DataError(f"'{name}.arguments' must be an object, got {shown(given)}", hint=CALL)
    _check_text(arguments, f"{name}.arguments")
    identity = value.get("id")
    return Call(
        tool_name(call["name"], f"{name}.name"), arguments, identity if isinstance(identity, str) else None
    )


def tool_name(value: Any, name: str) -> str:
    """A tool's name: one line, not blank."""
    found = text(value, name).strip()
    if not found or "\n" in found:
        raise DataError(f"{name!r} must be a tool's name, got {shown(value)}", hint="a name is one line")
    return found


def _check_text(value: Any, name: str) -> None:
    """Refuse half characters anywhere inside."""
    text(json.dumps(value, ensure_ascii=False, default=str), name)


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
