"""`/v1/messages` as the anthropic package uses it."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from calling import ANSWER, NOW, WEATHER, Saying, saying
from glmtune import encode_messages
from serving import NAMES, NEW, QUESTIONS, Served, generated

TOOLS: list[Any] = [
    {"name": "weather", "description": "Tells it", "input_schema": WEATHER},
    {"name": "now", "input_schema": NOW},
]


@pytest.fixture(scope="module")
def says(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saying]:
    with saying(tmp_path_factory.mktemp("says")) as server:
        yield server


def client_of(served: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def client(says: Saying) -> Iterator[anthropic.Anthropic]:
    with client_of(says.served) as one:
        yield one


def ask(says: Saying, client: anthropic.Anthropic, **settings: Any) -> Any:
    says.again()
    messages: Any = [{"role": "user", "content": "天气?"}]
    return client.messages.create(
        **{"model": "says", "max_tokens": 400, "messages": messages, "tools": TOOLS, **settings}
    )


def test_an_answer_is_that_of_generate_whole_and_streamed(served: Served) -> None:
    with client_of(served) as client:
        for name, question in zip(NAMES, QUESTIONS, strict=True):
            settings: Any = {
                "model": name,
                "max_tokens": NEW,
                "extra_body": {"temperature": 0},
                "messages": [{"role": "user", "content": [{"type": "text", "text": question}]}],
            }
            whole = client.messages.create(**settings)
            with client.messages.stream(**settings) as stream:
                text = "".join(stream.text_stream)
            assert "".join(block.text for block in whole.content) == text
            assert text == generated(served.folder, name, question)
            assert whole.stop_reason in ("end_turn", "max_tokens")


def test_thought_text_and_calls_are_blocks(says: Saying, client: anthropic.Anthropic) -> None:
    answer = ask(says, client)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use", "tool_use"]
    thought, text, *calls = answer.content
    assert (thought.thinking, text.text) == (ANSWER.thought, ANSWER.content)
    assert [(call.name, call.input) for call in calls] == [(c.name, c.arguments) for c in ANSWER.calls]
    assert answer.stop_reason == "tool_use"
    assert answer.usage.output_tokens == says.model.said
    assert answer.usage.input_tokens == len(says.model.prompt)


def test_a_stream_builds_the_same_message(says: Saying, client: anthropic.Anthropic) -> None:
    whole = ask(says, client)
    says.again()
    with client.messages.stream(
        model="says", max_tokens=400, messages=[{"role": "user", "content": "天气?"}], tools=TOOLS
    ) as stream:
        kinds = [event.type for event in stream]
        built = stream.get_final_message()
    made_up: Any = {"id": True, "content": {index: {"id"} for index in range(4)}}
    fields: Any = {"content", "stop_reason", "usage", "model"}
    assert built.model_dump(include=fields, exclude=made_up) == whole.model_dump(
        include=fields, exclude=made_up
    )
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    assert kinds.count("text") > 3  # as they come, not all at the end


def test_a_conversation_with_results_is_the_prompt_of_openais_form(
    says: Saying, client: anthropic.Anthropic
) -> None:
    call = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "北京"}}
    ask(
        says,
        client,
        system=[{"type": "text", "text": "简短", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "天气?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "想", "signature": "x"},
                    {"type": "text", "text": "我查"},
                    call,
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "晴"}]},
                    {"type": "text", "text": "明天?"},
                ],
            },
        ],
    )
    function = {"name": "weather", "arguments": json.dumps({"city": "北京"})}
    described = [
        {"name": "weather", "description": "Tells it", "parameters": WEATHER},
        {"name": "now", "description": "", "parameters": NOW},
    ]
    expected = encode_messages(
        says.tokenizer,
        [
            {"role": "system", "content": "简短"},
            {"role": "user", "content": "天气?"},
            {
                "role": "assistant",
                "content": "我查",
                "reasoning_content": "想",
                "tool_calls": [{"id": "c1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "晴"},
            {"role": "user", "content": "明天?"},
        ],
        tools=[{"type": "function", "function": each} for each in described],
    )
    assert says.model.prompt == expected


def test_tokens_are_counted_without_an_answer(says: Saying, client: anthropic.Anthropic) -> None:
    answer = ask(says, client)
    said = says.model.said
    counted = client.messages.count_tokens(
        model="says", messages=[{"role": "user", "content": "天气?"}], tools=TOOLS
    )
    assert counted.input_tokens == answer.usage.input_tokens
    assert says.model.said == said


def test_thinking_is_the_formats_choice(says: Saying, client: anthropic.Anthropic) -> None:
    ask(says, client, thinking={"type": "enabled", "budget_tokens": 2000})
    with_thought = says.model.prompt
    ask(says, client, thinking={"type": "adaptive"})
    assert says.model.prompt == with_thought
    ask(says, client, thinking={"type": "disabled"})
    assert says.tokenizer.decode(says.model.prompt).endswith("/nothink<|assistant|>\n<think></think>")


def test_the_reason_of_the_end_is_told(says: Saying, client: anthropic.Anthropic) -> None:
    cut = ask(says, client, max_tokens=9)
    assert (cut.stop_reason, cut.stop_sequence) == ("max_tokens", None)
    stopped = ask(says, client, stop_sequences=["我查"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "我查")
    assert stopped.content[-1].text == "好，"
    one = ask(says, client, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in one.content] == ["thinking", "text", "tool_use"]
    none = ask(says, client, tool_choice={"type": "none"})
    assert (none.stop_reason, none.content[-1].type) == ("end_turn", "text")
    assert "<tool_call>weather" in none.content[-1].text


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"extra_body": {"nonsense": 1}}, "nonsense"),
    "a forced call of no tool": ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    "a tool of Anthropic's own": ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
    "an answer that is begun": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "messages: the last one is an answer",
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        "messages.0.content.0: .*image",
    ),
    "no length": ({"max_tokens": 0}, "max_tokens"),
    "too hot": ({"extra_body": {"temperature": 1.5}}, "temperature"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_refused_in_anthropics_form(
    says: Saying, client: anthropic.Anthropic, what: str
) -> None:
    settings, words = REFUSED[what]
    with pytest.raises(anthropic.BadRequestError, match=words) as caught:
        ask(says, client, **settings)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_not_found_in_anthropics_form(says: Saying, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="there are says"):
        ask(says, client, model="none")
