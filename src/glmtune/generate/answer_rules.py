"""Rules in llguidance's Lark: JSON by a schema, and tool calls as each chat format writes them.

Source: https://github.com/guidance-ai/llguidance (docs/syntax.md, docs/json_schema.md).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from glmtune.errors import ConfigError
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
    Raises `ConfigError` for a tool that the format's calls cannot follow.
    """
    rules, names = list[str](), list[str]()
    for name, schema in functions.items():
        if "\n" in name:
            raise ConfigError(f"tools: a name of two lines, {name!r:.80}", hint="a name is one line")
        known = {"type": "object", **(schema if isinstance(schema, Mapping) else {})}
        if issubclass(calls, TagCall):
            call = _Arguments(rules, known).tags(name, control)
        elif issubclass(calls, CodeCall):
            code = f'"```python\\ntool_call(" {_Arguments(rules, known).keywords()} ")\\n```"'
            call = f"{_quoted(name)} /\\n ?/ {code}"
        else:
            # else a model that is unsure makes up arguments without end; further parts may name some
            if not known.keys() & {"$ref", "allOf", "anyOf", "oneOf"}:
                known = {"additionalProperties": False, "properties": {}, **known}
            # the models of 0414 learn a space behind the name
            call = f"{_quoted(name)} / ?\\n/ {json_rule(known)}"
        names.append(_named(rules, call))
    again = f"({control(calls.marks[0])} call)*" if calls.is_whole_turn else '("\\n" call)*'
    # sentencepiece puts a space in front of a text
    lead = "/ ?/" if calls.is_whole_turn else ""
    lines = [f"answer: call {'' if is_one else again}", f"call: {lead} ({' | '.join(names)})"]
    return "\n".join([*lines, *rules, _LITERAL])


def _named(rules: list[str], expression: str) -> str:
    """Add a rule for an expression, and return its name: used several times, it is written once."""
    name = f"part_{len(rules)}"
    rules.append(f"{name}: {expression}")
    return name


class _Arguments:
    """The expressions of one tool's arguments by its schema, where they are no JSON as a whole."""

    def __init__(self, rules: list[str], schema: Mapping[str, Any]) -> None:
        """`rules`: those that the expressions name, which are added to."""
        self._rules = rules
        self._schema = schema
        self._known: dict[str, str] = {}  # the rules of the parts that the schema points to

    def tags(self, name: str, control: Callable[[str], str]) -> str:
        """Return the expression of GLM-4.5's call."""
        begin, end, key_begin, key_end, value_begin, value_end = map(control, TagCall.marks)
        parts = [begin, _quoted(f"{name}\n")]
        shared = {key: self._schema[key] for key in ("$defs", "definitions") if key in self._schema}
        for key, known, is_required in self._members(self._schema):
            value = json_rule({**known, **shared})
            if json_types(known := self._pointed_to(known)) == {"string"}:
                values = _choices(known)
                value = r"/(.|\n)*/" if values is None else f"({' | '.join(map(_quoted, values))})"
            part = f'{key_begin} {_quoted(key)} {key_end} "\\n" {value_begin} {value} {value_end} "\\n"'
            parts.append(part if is_required else f"({part})?")
        return " ".join([*parts, end])

    def keywords(self) -> str:
        """Return the expression of Python's keyword arguments, as `chatglm3_turns` writes them."""
        words, members = list[tuple[str, bool]](), list[tuple[str, bool]]()
        for key, known, is_required in self._members(self._schema):
            is_word = is_python_name(key)
            start = f"{key}=" if is_word else f"{key!r}: "
            (words if is_word else members).append((f"{_quoted(start)} {self._python(known)}", is_required))
        if members:
            is_required = any(must for _, must in members)
            words.append((f'"**{{" {self._joined(members)} "}}"', is_required))
        return self._joined(words)

    def _members(self, schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
        """Yield name, schema and need of each member of an object. Raises `ConfigError`."""
        schema = self._pointed_to(schema)
        unread = sorted(schema.keys() & _UNREAD)
        if unread:
            raise ConfigError(
                f"tools: this chat format's calls cannot follow {unread[0]}",
                hint="list the properties instead",
            )
        found, needed = schema.get("properties") or {}, schema.get("required") or []
        for key, known in {**found, **{key: {} for key in needed if key not in found}}.items():
            yield key, known if isinstance(known, Mapping) else {}, key in needed

    def _pointed_to(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the part that a schema points to, or itself. Raises `ConfigError`."""
        seen: list[str] = []
        while "$ref" in schema:
            place, part = str(schema["$ref"]), self._schema
            for name in place.removeprefix("#").strip("/").split("/"):
                part = part.get(name, {}) if name else part
            if not place.startswith("#") or not part or place in seen:
                raise ConfigError(
                    f"tools: {place!r:.80} points to no part of its schema", hint="#/$defs/NAME"
                )
            seen.append(place)
            schema = {**part, **{key: value for key, value in schema.items() if key != "$ref"}}
        return schema

    def _joined(self, parts: Sequence[tuple[str, bool]]) -> str:
        """Return the expression of parts with commas between; those that are not required may be missing."""
        # from the last on: what follows a written part, and what follows none
        behind, alone = '""', '""'
        for part, is_required in reversed(parts):
            name = _named(self._rules, part)
            missing_behind, missing_alone = ("", "") if is_required else (f" | {behind}", f" | {alone}")
            alone = _named(self._rules, f"{name} {behind}{missing_alone}")
            behind = _named(self._rules, f'", " {name} {behind}{missing_behind}')
        return alone

    def _python(self, schema: Mapping[str, Any]) -> str:
        """Return the expression of a Python literal by a schema."""
        if "$ref" in schema:
            place = str(schema["$ref"])
            if place not in self._known:
                # known before it is written: it may point to itself
                self._known[place] = name = f"known_{len(self._rules)}"
                self._rules.append("")  # keeps its number from other rules
                self._rules.append(f"{name}: {self._python(self._pointed_to(schema))}")
            return self._known[place]
        values = _choices(schema)
        if values is not None:
            return f"({' | '.join(_quoted(repr(value)) for value in values)})"
        options = schema.get("anyOf") or schema.get("oneOf")
        if options:
            return f"({' | '.join(map(self._python, options))})"
        kinds = schema.get("type")
        listed = [kinds] if isinstance(kinds, str) else list(kinds or ())
        found = [self._of_kind(kind, schema) for kind in listed]
        return f"({' | '.join(found)})" if found else "literal"

    def _of_kind(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "array" and isinstance(schema.get("items"), Mapping):
            item = _named(self._rules, self._python(schema["items"]))
            least, most = int(schema.get("minItems") or 0), schema.get("maxItems")
            if most is not None and int(most) < 1:
                return '"[]"'
            again = f"{{{max(least - 1, 0)},{'' if most is None else int(most) - 1}}}"
            return f'"[" ({item} (", " {item}){again}){"" if least else "?"} "]"'
        if kind == "object" and (schema.get("properties") or schema.get("required")):
            members = [
                (f"{_quoted(f'{key!r}: ')} {self._python(known)}", is_required)
                for key, known, is_required in self._members(schema)
            ]
            return f'"{{" {self._joined(members)} "}}"'
        return _LITERALS[kind]


_UNREAD = {"allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "dependentSchemas"}
"""Words of an object's schema that only JSON follows here."""
_LITERALS: Mapping[str, str] = {
    "string": "text",
    "boolean": '("True" | "False")',
    "null": '"None"',
    "number": "number",
    "integer": "/-?(0|[1-9][0-9]{0,17})/",
    "array": "list",
    "object": "dict",
}


def _choices(schema: Mapping[str, Any]) -> list[Any] | None:
    """Return the values of which the schema allows one; None if it lists none. Raises `ConfigError`."""
    if "const" in schema:
        return [schema["const"]]
    if schema.get("enum") == []:
        raise ConfigError(
            "tools: an enum without a value allows no call", hint="list values, or leave it out"
        )
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
