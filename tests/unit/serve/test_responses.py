"""`/v1/responses` as the openai package uses it."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from calling import ANSWER, NOW, WEATHER, Saying, saying
from glmtune import encode_messages
from serving import NAMES, NEW, QUESTIONS, Served, generated

FUNCTIONS: list[dict[str, Any]] = [
    {"name": "weather", "description": "Tells it", "parameters": WEATHER},
    {"name": "now", "parameters": NOW},
]
TOOLS: list[Any] = [{"type": "function", **function} for function in FUNCTIONS]


@pytest.fixture(scope="module")
def says(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saying]:
    with saying(tmp_path_factory.mktemp("says")) as server:
        yield server


def ask(says: Saying, **settings: Any) -> Any:
    says.again()
    return says.served.openai().responses.create(
        **{"model": "says", "input": "天气?", "tools": TOOLS, "max_output_tokens": 400, **settings}
    )


def test_an_answer_is_that_of_generate_whole_and_streamed(served: Served) -> None:
    client = served.openai()
    for name, question in zip(NAMES, QUESTIONS, strict=True):
        settings: Any = {"model": name, "input": question, "temperature": 0, "max_output_tokens": NEW}
        assert client.responses.create(**settings).output_text == generated(served.folder, name, question)
        with client.responses.stream(**settings) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == generated(served.folder, name, question)


def test_thought_text_and_calls_are_items(says: Saying) -> None:
    reply = ask(says)
    assert [item.type for item in reply.output] == ["reasoning", "message", "function_call", "function_call"]
    thought, text, *calls = reply.output
    assert thought.content[0].text == ANSWER.thought
    assert text.content[0].text == reply.output_text == ANSWER.content
    assert [(call.name, call.arguments) for call in calls] == [
        ("weather", '{"city": "北京", "days": 2}'),
        ("now", "{}"),
    ]
    assert reply.status == "completed"
    assert reply.usage.output_tokens == says.model.said
    assert reply.usage.input_tokens == len(says.model.prompt)
    # of letters and of the token that ends it; the one that begins it belongs to nothing yet
    thought_ids = says.tokenizer.encode_plain(f"\n{ANSWER.thought}")
    thoughts = reply.usage.output_tokens_details.reasoning_tokens
    assert len(thought_ids) <= thoughts <= len(thought_ids) + 2
    assert reply.usage.input_tokens_details.cached_tokens == 0


def test_a_stream_builds_the_same_response(says: Saying) -> None:
    whole = ask(says)
    says.again()
    with says.served.openai().responses.stream(
        model="says", input="天气?", tools=TOOLS, max_output_tokens=400
    ) as stream:
        events = list(stream)
        built = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    pairs = zip(built.output, whole.output, strict=True)
    for one, other in pairs:
        fields = {"id", "call_id", "parsed_arguments", "parsed"}
        assert one.model_dump(exclude=fields, warnings=False)["type"] == other.type
    assert built.output_text == whole.output_text
    assert [item.arguments for item in built.output[2:]] == [item.arguments for item in whole.output[2:]]
    assert sum(event.type == "response.output_text.delta" for event in events) > 3


def test_a_conversation_with_results_is_the_prompt_of_the_older_form(says: Saying) -> None:
    first = ask(says, instructions="简短")
    conversation: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "天气?"}]},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"type": "function_call_output", "call_id": first.output[2].call_id, "output": "晴"},
        {"type": "function_call_output", "call_id": first.output[3].call_id, "output": "九点"},
    ]
    ask(says, instructions="简短", input=conversation)
    calls = [
        {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
        for item in first.output[2:]
    ]
    expected = encode_messages(
        says.tokenizer,
        [
            {"role": "system", "content": "简短"},
            {"role": "user", "content": "天气?"},
            {
                "role": "assistant",
                "content": ANSWER.content,
                "reasoning_content": ANSWER.thought,
                "tool_calls": calls,
            },
            {"role": "tool", "tool_call_id": calls[0]["id"], "content": "晴"},
            {"role": "tool", "tool_call_id": calls[1]["id"], "content": "九点"},
        ],
        tools=[{"type": "function", "function": function} for function in FUNCTIONS],
    )
    assert says.model.prompt == expected


def test_an_answer_that_is_cut_is_incomplete(says: Saying) -> None:
    reply = ask(says, max_output_tokens=9)
    assert reply.status == "incomplete"
    assert reply.incomplete_details.reason == "max_output_tokens"
    events = list(ask(says, max_output_tokens=9, stream=True))
    assert events[-1].type == "response.incomplete"


def test_no_effort_is_no_thought(says: Saying) -> None:
    ask(says, reasoning={"effort": "none"})
    assert says.tokenizer.decode(says.model.prompt).endswith("/nothink<|assistant|>\n<think></think>")
    one = ask(says, parallel_tool_calls=False)
    assert [item.type for item in one.output] == ["reasoning", "message", "function_call"]


def test_a_call_that_is_cut_is_never_told_as_completed(says: Saying) -> None:
    whole = [(item.name, item.arguments) for item in ask(says).output if item.type == "function_call"]
    length, seen = says.model.said, set()
    for most in range(length // 2, length):
        says.again()
        with says.served.openai().responses.stream(
            model="says", input="天气?", tools=TOOLS, max_output_tokens=most
        ) as stream:
            events = list(stream)
        told = [event.item_id for event in events if event.type == "response.function_call_arguments.done"]
        for event in events:
            if event.type != "response.output_item.done" or event.item.type != "function_call":
                continue
            seen.add(event.item.status)
            assert (event.item.status == "completed") == (event.item.id in told)
            is_whole = (event.item.name, event.item.arguments) in whole
            assert is_whole == (event.item.status == "completed")
    assert seen == {"completed", "incomplete"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"extra_body": {"nonsense": 1}}, "nonsense"),
    "what would have to be stored": ({"previous_response_id": "resp_1"}, "previous_response_id"),
    "a forced call of no tool": ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
    "a tool of OpenAI's own": ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    "a schema beside tools": ({"text": {"format": {"type": "json_object"}}}, "text.format"),
    "a schema that cannot be followed": (
        {
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}},
            "tool_choice": "none",
        },
        "text.format",
    ),
    "an image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input.0.content.0.type: Input should be",
    ),
    "an item of another kind": (
        {"input": [{"type": "item_reference", "id": "x"}]},
        "input.0: .*item_reference",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_refused_by_its_name(says: Saying, what: str) -> None:
    settings, words = REFUSED[what]
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        ask(says, **settings)
    body: Any = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}
