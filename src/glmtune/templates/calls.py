"""Reads the tool calls of an answer: a class for each of the two ways in which chat formats write them.

`tools` reads calls that programs give; a chat format writes them. What is no whole call of a tool that was
offered stays text.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic_core import from_json

from glmtune.errors import DataError
from glmtune.strict import parse_json
from glmtune.templates.messages import Call, Segment, unwrapped
from glmtune.templates.tools import CODE_BLOCK, read_arguments, read_calls
from glmtune.templates.turns import as_json

Functions = Mapping[str, object]
"""The tools that an answer may call: name -> the JSON schema of its arguments."""


def functions_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Return the functions among tool descriptions, in OpenAI's wrapper or without it."""
    functions = map(unwrapped, tools)
    return {str(each["name"]).strip(): each.get("parameters") for each in functions if "name" in each}


class CallReader(ABC):
    """Takes the segments of an answer one by one, as long as they may be a call."""

    marks: ClassVar[tuple[str, ...]]
    """Control tokens of a call; the first one begins it."""
    is_whole_turn: ClassVar[bool]
    """True if a call is a turn of its own: one may begin the answer, and no token ends it."""

    def __init__(self, functions: Functions) -> None:
        self.functions = functions

    @abstractmethod
    def take(self, segment: Segment) -> bool:
        """Take the next segment; return False if all that was taken is no call."""

    @property
    def is_ended(self) -> bool:
        """True if nothing further belongs to the call."""
        return False

    @abstractmethod
    def call(self) -> Call | None:
        """Return the call; None if it is incomplete or broken."""

    @abstractmethod
    def sure(self) -> tuple[str, str] | None:
        """Return the tool's name and the beginning of its arguments' JSON; None before any argument is sure.

        Each beginning goes on with the one before; of a whole call it is all.
        """

    def may_name(self, text: str) -> bool:
        """True if a text is the beginning of a function's name."""
        return any(name.startswith(text.strip()) for name in self.functions)


class LineCall(CallReader):
    """A call of ChatGLM3 or GLM-4: the tool's name on the first line of a turn, the arguments below.

    Arguments are a JSON object (GLM-4) or the code `tool_call(x=1)` in a code block (ChatGLM3).
    """

    marks = ("<|assistant|>",)
    is_whole_turn = True

    def __init__(self, functions: Functions) -> None:
        super().__init__(functions)
        self._begun = ""  # the text until it is sure to be a name with arguments behind
        self._rest: list[str] = []

    def take(self, segment: Segment) -> bool:
        """Take the next segment; return False if all that was taken is no call."""
        if segment.is_control:
            return False
        if self._rest:  # a long call is looked at when it is complete
            self._rest.append(segment.text)
            return True
        self._begun += segment.text
        name, line_break, arguments = self._begun.partition("\n")
        if not line_break:
            return self.may_name(name)
        first = arguments.lstrip()[: len(CODE_BLOCK)]
        if name.strip() not in self.functions or not (first.startswith("{") or CODE_BLOCK.startswith(first)):
            return False
        if first.startswith(("{", CODE_BLOCK)):
            self._rest.append(arguments)
        return True

    def call(self) -> Call | None:
        """Return the call; None if it is incomplete or broken."""
        name, _, _ = self._begun.partition("\n")
        try:
            arguments = read_arguments("".join(self._rest))
        except DataError:  # a key of the JSON twice
            return None
        return None if arguments is None else _checked(name, arguments)

    def sure(self) -> tuple[str, str] | None:
        """Return the name and the JSON as the model writes it. Code is only JSON when it is whole."""
        name, _, _ = self._begun.partition("\n")
        written = "".join(self._rest).strip()
        try:
            found = from_json(written, allow_inf_nan=False, allow_partial="trailing-strings")
        except ValueError:  # no JSON, or none any more: what follows is not passed on
            return None
        # a brace alone may also begin a text
        return (name.strip(), written) if isinstance(found, dict) and found else None


class CodeCall(LineCall):
    """A call of ChatGLM3, which writes code."""


_NEXT: Mapping[tuple[str, str], str] = {
    ("name", "<arg_key>"): "key",
    ("name", "</tool_call>"): "end",
    ("key", "</arg_key>"): "gap",
    ("gap", "<arg_value>"): "value",
    ("value", "</arg_value>"): "rest",
    ("rest", "<arg_key>"): "key",
    ("rest", "</tool_call>"): "end",
}
"""The parts of GLM-4.5's call: (part, control token) -> the part that it begins."""


class TagCall(CallReader):
    """A call of GLM-4.5: name, keys and values between control tokens.

    A value is a text or JSON; which of them, the function's schema says. Where it allows both, JSON wins.
    """

    marks = (
        "<tool_call>",
        "</tool_call>",
        *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    )
    is_whole_turn = False

    def __init__(self, functions: Functions) -> None:
        super().__init__(functions)
        self._part = "name"
        self._texts: list[list[str]] = [[]]  # name, then key, gap, value, rest, again and again

    def take(self, segment: Segment) -> bool:
        """Take the next segment; return False if all that was taken is no call."""
        following = _NEXT.get((self._part, segment.text)) if segment.is_control else None
        if following is not None:
            is_known = self._part != "name" or self._name in self.functions
            self._part = following
            self._texts.append([])
            return is_known
        if segment.is_control and self._part != "value":  # a value may spell control tokens
            return False
        self._texts[-1].append(segment.text)
        if self._part == "name":
            return self.may_name(self._name)
        # between the parts a model writes line breaks, and nothing else
        return self._part in ("key", "value") or not segment.text.strip()

    @property
    def is_ended(self) -> bool:
        """True if nothing further belongs to the call."""
        return self._part == "end"

    def call(self) -> Call | None:
        """Return the call; None if it is incomplete or broken."""
        return self._finished() if self.is_ended else None

    def sure(self) -> tuple[str, str] | None:
        """Return the name and the JSON of the arguments that are finished."""
        call = None if self._part == "name" else self._finished()
        if call is None or not call.arguments:
            return None
        written = as_json(call.arguments)
        return call.name, written if self.is_ended else written[:-1]

    def _finished(self) -> Call | None:
        """Return the call with the arguments that are finished; None if it is broken."""
        # the texts come in fours: key, gap, value, rest; the first one is the name
        keys, values = (["".join(text) for text in self._texts[first::4]] for first in (1, 3))
        values = values[:-1] if self._part == "value" else values
        keys = keys[: len(values)]  # the last one may be open; the last text, behind the call, is none
        # which of two values is meant cannot be known
        if len(set(keys)) < len(keys):
            return None
        schema = self.functions[self._name]
        known = schema.get("properties") if isinstance(schema, Mapping) else None
        kinds = known if isinstance(known, Mapping) else {}
        arguments = {key: _value(text, kinds.get(key)) for key, text in zip(keys, values, strict=True)}
        return _checked(self._name, arguments)

    @property
    def _name(self) -> str:
        return "".join(self._texts[0]).strip()


def _checked(name: str, arguments: Mapping[str, Any]) -> Call | None:
    """Return the call; None if no JSON in UTF-8 can hold its arguments."""
    try:
        return read_calls({"name": name, "arguments": arguments}, "call")[0]
    except DataError:
        return None


def _value(text: str, schema: object) -> Any:
    """Return the value that a text writes: itself, or the value of its JSON."""
    types = json_types(schema)
    if types == {"string"}:
        return text
    try:
        value = parse_json(text)
        json.dumps(value, allow_nan=False)
    except ValueError:  # no JSON, or a number that JSON does not have
        return text
    return text if "string" in types and _TYPES[type(value)] not in types else value


def json_types(schema: object) -> set[str]:
    """Return the JSON types that a schema names, an integer as a number; empty if it allows any."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    if isinstance(named, str | list):
        names = [named] if isinstance(named, str) else map(str, named)
        return {_SAME.get(name, name) for name in names}
    if isinstance(schema.get("enum"), list):
        return {_TYPES.get(type(value), "") for value in schema["enum"]}
    options = schema.get("anyOf") or schema.get("oneOf")
    if not isinstance(options, list):
        return set()
    found = [json_types(option) for option in options]
    return set().union(*found) if all(found) else set()


_SAME = {"integer": "number"}
_TYPES: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}
"""JSON's name of a value's type."""
