"""Calls that a client forces, and answers in a form, in all three interfaces and for every served model."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import jsonschema_rs
import openai
import pytest

from serving import NAMES, Served

# short: these models read 512 tokens
SCHEMAS: dict[str, Any] = {
    "at": {"type": "object", "properties": {"n": {"enum": [1, 2]}}},
    "now": {"type": "object"},
}
FORM = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "city": {"enum": ["北京", "上海"]}},
    "required": ["ok", "city"],
    "additionalProperties": False,
}
QUESTION: list[Any] = [{"role": "user", "content": "你好"}]


def checked(name: str, arguments: str) -> str:
    """The name of a call whose arguments its schema allows."""
    jsonschema_rs.validate(SCHEMAS[name], json.loads(arguments))
    return name


@pytest.mark.parametrize("model", NAMES)
def test_a_chat_is_nothing_but_the_calls_that_are_forced(served: Served, model: str) -> None:
    tools: Any = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
    settings: Any = {"model": model, "messages": QUESTION, "tools": tools, "max_tokens": 50, "temperature": 0}
    client = served.openai().chat.completions
    reply = client.create(**settings, tool_choice="required", parallel_tool_calls=False)
    message = reply.choices[0].message
    assert message.content is None
    assert reply.choices[0].finish_reason == "tool_calls"
    [call] = message.tool_calls
    assert checked(call.function.name, call.function.arguments) in SCHEMAS
    for name in SCHEMAS:
        named: Any = {"type": "function", "function": {"name": name}}
        with client.stream(**settings, tool_choice=named) as stream:
            [call] = stream.get_final_completion().choices[0].message.tool_calls or []
        assert checked(call.function.name, call.function.arguments) == name


def test_a_response_is_nothing_but_the_calls_that_are_forced(served: Served) -> None:
    tools: Any = [{"type": "function", "name": name, "parameters": of} for name, of in SCHEMAS.items()]
    settings: Any = {"model": "base", "input": "你好", "tools": tools, "max_output_tokens": 100}
    for choice, known in (("required", set(SCHEMAS)), ({"type": "function", "name": "now"}, {"now"})):
        reply = served.openai().responses.create(**settings, tool_choice=choice, parallel_tool_calls=False)
        [call] = reply.output
        assert call.type == "function_call"
        assert checked(call.name, call.arguments) in known


def test_a_message_is_nothing_but_the_calls_that_are_forced(served: Served) -> None:
    tools: Any = [{"name": name, "input_schema": of} for name, of in SCHEMAS.items()]
    settings: Any = {"model": "base", "max_tokens": 50, "messages": QUESTION, "tools": tools}
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=120) as client:
        for choice, known in (({"type": "any"}, set(SCHEMAS)), ({"type": "tool", "name": "now"}, {"now"})):
            tool_choice: Any = {**choice, "disable_parallel_tool_use": True}
            reply = client.messages.create(**settings, tool_choice=tool_choice)
            [call] = reply.content
            assert call.type == "tool_use"
            assert reply.stop_reason == "tool_use"
            assert checked(call.name, json.dumps(call.input)) in known
        with pytest.raises(anthropic.BadRequestError, match=r"tool_choice\.name"):
            client.messages.create(**settings, tool_choice={"type": "any", "name": "now"})  # type: ignore[call-overload]


def test_a_tool_that_is_not_offered_cannot_be_forced(served: Served) -> None:
    named: Any = {"type": "function", "name": "ask"}
    with pytest.raises(openai.BadRequestError, match="no such tool is offered; there are none"):
        served.openai().responses.create(model="base", input="你好", tool_choice=named)
    tools: Any = [{"type": "function", "name": "now", "parameters": None, "strict": False}]
    with pytest.raises(openai.BadRequestError, match="no such tool is offered; there are now"):
        served.openai().responses.create(model="base", input="你好", tool_choice=named, tools=tools)


def test_a_response_follows_a_schema(served: Served) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "answer", "schema": FORM}}
    settings: Any = {"model": "base", "input": "你好", "max_output_tokens": 100, "text": form}
    reply = served.openai().responses.create(**settings)
    jsonschema_rs.validate(FORM, json.loads(reply.output_text))
    assert reply.text.format.schema_ == FORM
    tools: Any = [{"type": "function", "name": "now", "parameters": {}, "strict": False}]
    with pytest.raises(openai.BadRequestError, match="cannot call tools"):
        served.openai().responses.create(**settings, tools=tools)


def test_a_schema_with_too_many_possibilities_harms_its_own_answer_alone(served: Served) -> None:
    place = "#/$defs/N"
    node = {"type": "object", "properties": {"n": {"$ref": place}}, "required": ["n"]}
    endless: Any = {"$defs": {"N": node}, "$ref": place}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": endless}}
    client = served.openai()
    settings: Any = {"model": "base", "messages": QUESTION, "max_tokens": 300, "temperature": 0}
    alone = client.chat.completions.create(**settings).choices[0].message.content
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(client.chat.completions.create, **settings)
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**settings, response_format=form)
        assert other.result().choices[0].message.content == alone
    assert caught.value.status_code in (400, 500)
    assert "schema" in str(caught.value)
