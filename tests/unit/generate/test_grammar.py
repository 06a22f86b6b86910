"""Answers that follow a JSON schema, and forced calls, in every chat format and from any scores."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import examples
from glmtune.errors import ConfigError
from glmtune.generate.grammar import Grammar, Vocabulary
from glmtune.generate.requests import Token
from glmtune.generate.sampling import Draw, Sampling, draw_tokens
from glmtune.serve.answer import GrowingAnswer
from glmtune.serve.chat import whole_message
from glmtune.templates import TEMPLATES, Call, Message, Segment, render
from glmtune.templates.answer_stream import AnswerStream
from glmtune.templates.calls import CodeCall, LineCall, TagCall
from glmtune.tokenizers.protocol import Tokenizer
from tiny import tiny_tokenizer

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "a b": {"type": "array"},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city"],
}
CALLING = [name for name, row in TEMPLATES.items() if row.calls]
names = st.sampled_from(["city", "天气", "a b", 'q"', "n"])
leaves = st.sampled_from(
    [
        {"type": "integer", "minimum": 3, "maximum": 12},
        {"type": "number", "minimum": -5, "maximum": 5},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string", "maxLength": 5},
        {"type": "string", "pattern": "^[a-c]{2}-[0-9]$"},
        {"enum": ["北京", 2, None]},
        {"const": {"x": 1}},
    ]
)


numbers = [
    {"type": "integer", "minimum": 3, "maximum": 12},
    {"type": "number", "minimum": -5, "maximum": 5},
]
free = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": "string"},
    {"type": ["string", "null"]},
    {"enum": ["北京", 2, None]},
    {"enum": ["上海", "it's"]},
    {"const": {"x": True}},
]
# JSON keeps bounds and patterns; a text between tags does not, nor does code
ARGUMENTS: Mapping[Any, st.SearchStrategy[Any]] = {
    LineCall: leaves,
    TagCall: st.sampled_from([*numbers, *free]),
    CodeCall: st.sampled_from([{"type": "integer"}, {"type": "number"}, *free]),
}


def objects_of(inner: st.SearchStrategy[Any], *, least: int = 1) -> st.SearchStrategy[Any]:
    return st.dictionaries(names, inner, min_size=least, max_size=3).map(
        lambda fields: {
            "type": "object",
            "properties": fields,
            "required": sorted(fields)[:2],
            "additionalProperties": False,
        }
    )


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        inner,
        lambda inner: st.one_of(
            objects_of(inner),
            inner.map(lambda each: {"type": "array", "items": each, "minItems": 1, "maxItems": 2}),
        ),
        max_leaves=3,
    )


schemas = objects_of(nested(leaves))


def drawn(tokenizer: Tokenizer, limit: Grammar, seed: int) -> list[int]:
    """The ids that random scores give, without the one that ends the answer."""
    random = torch.Generator().manual_seed(seed)
    draw = Draw(Sampling(do_sample=False), [1], device=torch.device("cpu"), limit=limit)
    # random bytes do not spell the end of a thought
    is_thought = tokenizer.chat_format.begins_thought
    ids = tokenizer.encode_plain("想。</think>") if is_thought else []
    for token in ids:
        limit.take(token)
    stops = {*tokenizer.stop_ids, tokenizer.end_id}
    while len(ids) < 6000:
        # more scores than tokens, as models pad their vocabulary
        (token,) = draw_tokens(torch.randn(1, len(tokenizer) + 7, generator=random), [draw])
        if token in stops:
            return ids
        limit.take(token)
        ids.append(token)
    raise AssertionError("no end")


@pytest.mark.parametrize("template", TEMPLATES)
def test_any_scores_write_an_answer_that_the_schema_allows(template: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, template)
    vocabulary = Vocabulary(tokenizer, {*tokenizer.stop_ids, tokenizer.end_id})

    @settings(max_examples=examples(15))
    @given(schemas, st.integers(0, 2**20))
    def check(schema: Any, seed: int) -> None:
        ids = drawn(tokenizer, vocabulary.json(schema), seed)
        answer = tokenizer.chat_format.shown(tokenizer.decode(ids)).rpartition("</think>")[2]
        jsonschema_rs.validate(schema, json.loads(answer))

    check()


def parsed(tokenizer: Tokenizer, tools: list[dict[str, Any]], ids: list[int]) -> dict[str, Any]:
    """The message that a client gets for an answer."""
    stream = AnswerStream(tokenizer.chat_format, tools)
    answer = GrowingAnswer(0, tokenizer, stream)
    tokens = [Token(0, index, False) for index in ids] + [Token(0, tokenizer.stop_ids[0], True)]
    return whole_message([piece for token in tokens for piece in answer.take(token).pieces])


@pytest.mark.parametrize("template", CALLING)
def test_any_scores_write_calls_alone_with_arguments_that_the_schema_allows(
    template: str, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer(tmp_path, template)
    vocabulary = Vocabulary(tokenizer, {*tokenizer.stop_ids, tokenizer.end_id})
    arguments = objects_of(nested(ARGUMENTS[TEMPLATES[template].calls]), least=0)
    functions = st.dictionaries(st.sampled_from(["weather", "查天气", 'a "b"']), arguments, min_size=1)

    @settings(max_examples=examples(25))
    @given(functions, st.booleans(), st.integers(0, 2**20))
    def check(functions: dict[str, Any], is_one: bool, seed: int) -> None:
        tools = [
            {"type": "function", "function": {"name": name, "parameters": schema}}
            for name, schema in functions.items()
        ]
        message = parsed(tokenizer, tools, drawn(tokenizer, vocabulary.calls(functions, is_one=is_one), seed))
        assert message["content"] is None
        calls = [call["function"] for call in message["tool_calls"]]
        assert len(calls) == 1 or not is_one
        for call in calls:
            jsonschema_rs.validate(functions[call["name"]], json.loads(call["arguments"]))

    check()


@pytest.mark.parametrize("template", CALLING)
def test_a_call_as_the_format_writes_it_is_allowed(template: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, template)
    vocabulary = Vocabulary(tokenizer, {*tokenizer.stop_ids, tokenizer.end_id})
    limit = vocabulary.calls({"weather": WEATHER, "now": None}, is_one=False)
    question = Message("user", "?")
    arguments = {"city": "北京 it's", "days": 2, "a b": [True, None, {"x": -1.5}]}
    calls = [Call("weather", arguments), Call("now", {})]
    # GLM-Z1 writes calls as GLM-4-0414 does, behind a thought that its prompt begins
    is_thought = TEMPLATES[template].begins_thought
    writing = "glm4_0414" if is_thought else template
    asked = render(writing, [question], True)
    answer = Message("assistant", "", calls=tuple(calls))
    said = render(writing, [question, answer], False)[len(asked) :]
    thought = [Segment("想。</think>\n")] if is_thought else []
    for token in tokenizer.encode_segments([*thought, *said]):
        assert limit.mask(len(tokenizer))[token]
        limit.take(token)
    assert limit.mask(len(tokenizer))[tokenizer.control_id("<|observation|>")]


def test_a_schema_that_cannot_be_followed_is_refused_by_its_word(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, "glm4")
    vocabulary = Vocabulary(tokenizer, tokenizer.stop_ids)
    with pytest.raises(ConfigError, match="not"):
        vocabulary.json({"type": "object", "properties": {"a": {"not": {}}}})


def test_a_format_without_calls_refuses_to_force_one(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, "chatglm2")
    with pytest.raises(ConfigError, match="tool_choice"):
        Vocabulary(tokenizer, tokenizer.stop_ids).calls({"now": None}, is_one=True)


RECURSIVE = {
    "$defs": {
        "N": {
            "type": "object",
            "properties": {"n": {"enum": ["C", "F"]}, "next": {"$ref": "#/$defs/N"}},
            "required": ["n"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/N",
}
POINTING: dict[str, Any] = {
    "$defs": {"U": {"enum": ["C", "F"]}},
    "type": "object",
    "properties": {"u": {"$ref": "#/$defs/U"}, "days": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
    "required": ["u", "days", "more"],
}


@pytest.mark.parametrize("template", CALLING)
@pytest.mark.parametrize("schema", [RECURSIVE, POINTING])
def test_forced_calls_follow_what_a_schema_points_to(
    template: str, schema: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer(tmp_path, template)
    vocabulary = Vocabulary(tokenizer, {*tokenizer.stop_ids, tokenizer.end_id})
    # GLM-4's JSON knows no value for a member without a schema but any
    schema = schema if TEMPLATES[template].calls is not LineCall else {**schema, "required": []}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    for seed in range(5):
        message = parsed(
            tokenizer, tools, drawn(tokenizer, vocabulary.calls({"f": schema}, is_one=True), seed)
        )
        [call] = message["tool_calls"]
        jsonschema_rs.validate(schema, json.loads(call["function"]["arguments"]))


BAD_SCHEMAS: dict[str, dict[str, Any]] = {
    "required is a number": {"required": 5},
    "a bound in words": {"properties": {"a": {"type": "array", "items": {}, "minItems": "three"}}},
    "a type that is an object": {"properties": {"a": {"type": [{"x": 1}]}}},
    "no value": {"properties": {"a": {"enum": []}}},
    "points to nothing": {"$ref": "#/$defs/N"},
    "points to itself": {"$defs": {"N": {"$ref": "#/$defs/N"}}, "$ref": "#/$defs/N"},
    "a word that code cannot follow": {"allOf": [{"required": ["city"]}]},
}


@pytest.mark.parametrize("problem", BAD_SCHEMAS)
def test_a_tool_that_cannot_be_followed_is_refused(problem: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, "chatglm3")
    vocabulary = Vocabulary(tokenizer, tokenizer.stop_ids)
    with pytest.raises(ConfigError, match="tools"):
        vocabulary.calls({"f": BAD_SCHEMAS[problem]}, is_one=True)


def test_a_name_of_two_lines_cannot_be_forced(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, "glm4")
    with pytest.raises(ConfigError, match="two lines"):
        Vocabulary(tokenizer, tokenizer.stop_ids).calls({"a\nb": None}, is_one=True)


def test_the_rules_grow_with_the_schema_and_no_faster(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, "chatglm3")
    vocabulary = Vocabulary(tokenizer, tokenizer.stop_ids)

    def nested_in(depth: int) -> dict[str, Any]:
        inner = [nested_in(depth - 1)] if depth else []
        parts = [{"type": "integer"}] * 8 + inner
        return {"type": "object", "properties": {f"p{i}": part for i, part in enumerate(parts)}}

    vocabulary.calls({"f": nested_in(7)}, is_one=True)
    with pytest.raises(ConfigError, match="too large a schema"):
        vocabulary.calls({f"f{i}": nested_in(7) for i in range(100)}, is_one=True)
