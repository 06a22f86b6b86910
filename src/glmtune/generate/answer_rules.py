"""Rules in llguidance's Lark: JSON by a schema, and tool calls as each chat format writes them.

Source: https://github.com/guidance-ai/llguidance (docs/syntax.md, docs/json_schema.md).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from glmtune.templates.calls import CallReader, CodeCall, Functions, TagCall, json_types
from glmtune.templates.turns import is_python_name

_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space as Python's json writes it: with any, a model that is unsure could write nothing else."""
_LITERAL = r"""
text: "'" /([^'\\\x00-\x1f\x7f]|\\['"\\nrt]|\\x[01][0-9a-f])*/ "'" | double
double: "\"" /([^"\\\x00-\x1f\x7f]|\\['"\\nrt]|\\x[01][0-9a-f])*/ "\""
number: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?/
literal: text | number | "True" | "False" | "None" | list | dict
list: "[" (literal (", " literal)*)? "]"
dict: "{" (text ": " literal (", " text ": " literal)*)? "}"
"""
"""Python's literals that JSON can hold."""


def json_rule(schema: Mapping[str, Any]) -> str:
    """Return the expression of JSON by a schema."""
    return f"%json {json.dumps({**schema, 'x-guidance': _WRITTEN})}"


def calls_rule(
    calls: type[CallReader], functions: Functions, control: Callable[[str], str], *, is_one: bool
) -> str:
    """Return the rule `answer` of one or several calls, and the rules that it names.

    `control`: the expression of a control token, by its name; `is_one`: nothing follows the first call.
    """
    rules = []
    for index, (name, schema) in enumerate(functions.items()):
        known = {"type": "object", **(schema if isinstance(schema, Mapping) else {})}
        # else a model that is unsure makes up arguments without end; further parts may name some
        if not known.keys() & {"$ref", "allOf", "anyOf", "oneOf"}:
            known = {"additionalProperties": False, "properties": {}, **known}
        if issubclass(calls, TagCall):
            call = _tags(name, known, control)
        elif issubclass(calls, CodeCall):
            code = f'"```python\\ntool_call(" {_keywords(known)} ")\\n```"'
            call = f"{_quoted(name)} /\\n ?/ {code}"
        else:
            # the models of 0414 learn a space behind the name
            call = f"{_quoted(name)} / ?\\n/ {json_rule(known)}"
        rules.append(f"call_{index}: {call}")
    any_call = " | ".join(f"call_{index}" for index in range(len(rules)))
    again = f"({control(calls.marks[0])} call)*" if calls.is_whole_turn else '("\\n" call)*'
    # sentencepiece puts a space in front of a text
    lead = "/ ?/" if calls.is_whole_turn else ""
    lines = [f"answer: call {'' if is_one else again}", f"call: {lead} ({any_call})", *rules, _LITERAL]
    return "\n".join(lines)


def _tags(name: str, schema: Mapping[str, Any], control: Callable[[str], str]) -> str:
    """Return the expression of GLM-4.5's call."""
    begin, end, key_begin, key_end, value_begin, value_end = map(control, TagCall.marks)
    parts = [begin, _quoted(f"{name}\n")]
    for key, known, is_required in _arguments(schema):
        values = _choices(known)
        if values is not None and json_types(known) == {"string"}:
            value = f"({' | '.join(map(_quoted, values))})"
        else:
            value = r"/(.|\n)*/" if json_types(known) == {"string"} else json_rule(known)
        part = f'{key_begin} {_quoted(key)} {key_end} "\\n" {value_begin} {value} {value_end} "\\n"'
        parts.append(part if is_required else f"({part})?")
    return " ".join([*parts, end])


def _arguments(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield name, schema and need of each argument; each schema with the parts that it may point to."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    found = schema.get("properties")
    needed = schema.get("required") or ()
    for key, known in (found if isinstance(found, Mapping) else {}).items():
        yield key, {**(known if isinstance(known, Mapping) else {}), **shared}, key in needed


def _choices(schema: Mapping[str, Any]) -> list[Any] | None:
    """Return the values of which the schema allows one; None if it lists none."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _keywords(schema: Mapping[str, Any]) -> str:
    """Return the expression of Python's keyword arguments, as `chatglm3_turns` writes them."""
    words, members = list[tuple[str, bool]](), list[tuple[str, bool]]()
    for key, known, is_required in _arguments(schema):
        is_word = is_python_name(key)
        start = f"{key}=" if is_word else f"{key!r}: "
        (words if is_word else members).append((f"{_quoted(start)} {_python(known, 1)}", is_required))
    if members:
        words.append((f'"**{{" {_joined(members)} "}}"', any(is_required for _, is_required in members)))
    return _joined(words)


def _joined(parts: Sequence[tuple[str, bool]]) -> str:
    """Return the expression of parts with commas between; those that are not required may be missing."""
    options = []
    for index, (first, is_required) in enumerate(parts):
        rest = (f'", " {part}' if must else f'(", " {part})?' for part, must in parts[index + 1 :])
        options.append(" ".join([first, *rest]))
        if is_required:
            return f"({' | '.join(options)})"
    return f"({' | '.join(options)})?" if options else ""


def _python(schema: Mapping[str, Any], depth: int) -> str:
    """Return the expression of a Python literal by a schema; of any that JSON can hold where it is deep."""
    values = _choices(schema)
    if values is not None:
        return f"({' | '.join(_quoted(repr(value)) for value in values)})"
    kinds = schema.get("type")
    if kinds == "array" and isinstance(schema.get("items"), Mapping) and depth < 8:
        item = _python(schema["items"], depth + 1)
        least, most = schema.get("minItems") or 0, schema.get("maxItems")
        again = f"{{{max(least - 1, 0)},{'' if most is None else max(most - 1, 0)}}}"
        return f'"[" ({item} (", " {item}){again}){"" if least else "?"} "]"'
    if kinds == "object" and schema.get("properties") and depth < 8:
        members = [
            (f"{_quoted(f'{key!r}: ')} {_python(known, depth + 1)}", is_required)
            for key, known, is_required in _arguments(schema)
        ]
        return f'"{{" {_joined(members)} "}}"'
    written = {
        "string": "text",
        "boolean": '("True" | "False")',
        "null": '"None"',
        "number": "number",
        "integer": "/-?(0|[1-9][0-9]{0,17})/",
        "array": "list",
        "object": "dict",
    }
    listed = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    found = [written[kind] for kind in listed if kind in written]
    return f"({' | '.join(found)})" if found else "literal"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
