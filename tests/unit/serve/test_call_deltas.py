"""Calls as they come, through each of the three interfaces."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from calling import ANSWER, NOW, WEATHER, Saying, saying
from glmtune.generate.requests import Token
from glmtune.serve.answer import AddedText, GrowingAnswer
from glmtune.serve.errors import ApiError
from glmtune.templates import Call, Message
from glmtune.templates.answer_stream import AnswerStream
from tiny import tiny_tokenizer

QUESTION: list[Any] = [{"role": "user", "content": "天气?"}]
FUNCTIONS: list[dict[str, Any]] = [
    {"name": "weather", "parameters": WEATHER},
    {"name": "now", "parameters": NOW},
]
CHAT_TOOLS: list[Any] = [{"type": "function", "function": function} for function in FUNCTIONS]
CALLS = (Call("weather", {"city": "北京, a long way to the north", "days": 2}), Call("now", {}))


@pytest.fixture(scope="module", params=["glm4", "glm45"])
def says(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saying]:
    answer = ANSWER if request.param == "glm45" else Message("assistant", "", calls=CALLS)
    with saying(tmp_path_factory.mktemp("says"), request.param, answer) as server:
        yield server


def calls_of(says: Saying) -> list[tuple[str, Any]]:
    calls = CALLS if says.tokenizer.template == "glm4" else ANSWER.calls
    return [(call.name, call.arguments) for call in calls]


def test_openais_chunks_bring_the_arguments_in_parts(says: Saying) -> None:
    says.again()
    names: dict[int, str] = {}
    parts: dict[int, list[str]] = {}
    for chunk in says.served.openai().chat.completions.create(
        model="says", messages=QUESTION, tools=CHAT_TOOLS, max_tokens=400, stream=True
    ):
        for call in chunk.choices[0].delta.tool_calls or ():
            if call.function.name:
                assert call.id
                names[call.index] = call.function.name
            parts.setdefault(call.index, []).append(call.function.arguments)
        reason = chunk.choices[0].finish_reason
    assert reason == "tool_calls"
    assert [(names[i], json.loads("".join(parts[i]))) for i in sorted(names)] == calls_of(says)
    assert len(parts[0]) > 1


def test_anthropics_events_bring_the_input_in_parts(says: Saying) -> None:
    says.again()
    tools: Any = [{"name": each["name"], "input_schema": each["parameters"]} for each in FUNCTIONS]
    with (
        anthropic.Anthropic(base_url=says.served.url, api_key="none", max_retries=0, timeout=120) as client,
        client.messages.stream(model="says", max_tokens=400, messages=QUESTION, tools=tools) as stream,
    ):
        kinds = [event.type for event in stream]
        built = stream.get_final_message()
    assert [(b.name, b.input) for b in built.content if b.type == "tool_use"] == calls_of(says)
    assert built.stop_reason == "tool_use"
    assert kinds.count("input_json") > 2


def test_the_events_of_responses_bring_the_arguments_in_parts(says: Saying) -> None:
    says.again()
    tools: Any = [{"type": "function", **each} for each in FUNCTIONS]
    with says.served.openai().responses.stream(
        model="says", input="天气?", tools=tools, max_output_tokens=400
    ) as stream:
        events = list(stream)
        built = stream.get_final_response()
    calls = [item for item in built.output if item.type == "function_call"]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == calls_of(says)
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 2
    ids = {event.item.id for event in events if event.type == "response.output_item.added"}
    assert {event.item_id for event in deltas} <= ids


def test_one_call_ends_the_stream_if_no_more_are_wanted(says: Saying) -> None:
    says.again()
    chunks = list(
        says.served.openai().chat.completions.create(
            model="says", messages=QUESTION, tools=CHAT_TOOLS, parallel_tool_calls=False, stream=True
        )
    )
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert {call.index for call in deltas} == {0}
    assert json.loads("".join(call.function.arguments for call in deltas)) == calls_of(says)[0][1]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def grown(folder: Path, text: str, *, is_ended: bool, stops: tuple[str, ...] = ()) -> list[AddedText]:
    tokenizer = tiny_tokenizer(folder, "glm4")
    stream = AnswerStream(tokenizer.chat_format, CHAT_TOOLS, streams_calls=True)
    answer = GrowingAnswer(0, tokenizer, stream, stops=stops)
    ids = tokenizer.encode_plain(text) + ([tokenizer.end_id] if is_ended else [])
    added = []
    for place, token in enumerate(ids):
        added.append(answer.take(Token(0, token, place == len(ids) - 1)))
        if added[-1].reason:
            break
    return added


def test_a_call_that_the_model_breaks_is_an_error(tmp_path: Path) -> None:
    for text in ('weather\n{"city": "x" no', 'weather\n{"city": "x", "city": "y"}', 'weather\n{"city": "x'):
        with pytest.raises(ApiError, match="broke off"):
            grown(tmp_path, text, is_ended=True)


def test_a_call_that_is_cut_is_told_by_the_reason(tmp_path: Path) -> None:
    text = 'weather\n{"city": "x'
    assert grown(tmp_path, text, is_ended=False)[-1].reason == "length"
    assert grown(tmp_path, f"{text}STOP", is_ended=False, stops=("STOP",))[-1].reason == "stop"
    whole = 'weather\n{"city": "x"}'
    assert grown(tmp_path, whole, is_ended=True)[-1].reason == "tool_calls"
