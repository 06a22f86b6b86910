"""`/v1/chat/completions` as the openai package uses it."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch

from glmtune import encode_messages
from serving import NAMES, NEW, QUESTIONS, Served, generated, loaded


def ask(served: Served, name: str, question: str, **settings: Any) -> Any:
    return served.openai().chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": question}],
        **{"temperature": 0, "max_tokens": NEW, **settings},
    )


def streamed_text(served: Served, name: str, question: str, **settings: Any) -> str:
    chunks = ask(served, name, question, stream=True, **settings)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_that_of_generate(served: Served, name: str) -> None:
    answers = [ask(served, name, question).choices[0].message.content for question in QUESTIONS]
    assert answers == [generated(served.folder, name, question) for question in QUESTIONS]
    assert len(set(answers)) > 1


def test_base_lora_and_prefix_answer_side_by_side_as_each_alone(served: Served) -> None:
    asked = [(name, question) for question in QUESTIONS for name in NAMES] * 2
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda each: streamed_text(served, *each), asked))
    assert answers == [generated(served.folder, *each) for each in asked]
    assert len(set(answers)) > 3


def test_a_stream_tells_its_end_and_its_tokens(served: Served) -> None:
    whole = ask(served, "base", "你好", max_tokens=8)
    chunks = list(
        ask(served, "base", "你好", max_tokens=8, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    usage, again = whole.usage, chunks[-1].usage
    kept = {"prompt_tokens_details"}
    assert again.model_dump(exclude=kept) == usage.model_dump(exclude=kept)
    # the answer before has left the prompt's keys and values; its last token is computed in any case
    assert again.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    assert usage.completion_tokens_details.reasoning_tokens == 0
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stop_text_ends_the_answer_whole_and_streamed(served: Served) -> None:
    text = generated(served.folder, "base", QUESTIONS[0])
    for start in range(1, len(text) - 2, 3):  # also across the borders of tokens
        stop = text[start : start + 2]
        expected = text[: text.index(stop)]
        answer = ask(served, "base", QUESTIONS[0], stop=[stop])
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.content == expected
    assert streamed_text(served, "base", QUESTIONS[0], stop=stop) == expected
    served.wait(rows=0)


def test_each_of_several_answers_has_its_own_draws_and_a_seed_repeats_them(served: Served) -> None:
    def drawn(seed: int) -> list[str]:
        answer = ask(served, "lora", "你好", temperature=1.5, top_p=1, n=4, seed=seed, max_tokens=12)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        return [choice.message.content for choice in answer.choices]

    first = drawn(1)
    assert len(set(first)) > 1
    assert drawn(1) == first != drawn(5)


def test_log_probabilities_are_the_models_own(served: Served) -> None:
    answer = ask(served, "lora", "你好", logprobs=True, top_logprobs=3, max_tokens=6)
    model, tokenizer = loaded(served.folder, "lora")
    prompt = encode_messages(tokenizer, [{"role": "user", "content": "你好"}])
    scores = model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
    first = answer.choices[0].logprobs.content[0]
    expected = scores.topk(3)
    assert [each.logprob for each in first.top_logprobs] == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert first.logprob == first.top_logprobs[0].logprob
    assert [each.token for each in first.top_logprobs] == [
        tokenizer.decode([index]) for index in expected.indices.tolist()
    ]
    streamed = ask(served, "lora", "你好", logprobs=True, top_logprobs=3, max_tokens=6, stream=True)
    tokens = [each for c in streamed if c.choices[0].logprobs for each in c.choices[0].logprobs.content]
    assert [each.logprob for each in tokens] == pytest.approx(
        [each.logprob for each in answer.choices[0].logprobs.content], abs=1e-4
    )


def test_every_adapter_is_a_model(served: Served) -> None:
    client = served.openai()
    assert [model.id for model in client.models.list()] == list(NAMES)
    assert client.models.retrieve("short").id == "short"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


REFUSED: dict[str, tuple[dict[str, Any], str | None]] = {
    "an unknown field": ({"extra_body": {"nonsense": 1}}, "nonsense"),
    "a form that is not known": ({"response_format": {"type": "grammar"}}, "response_format"),
    "a schema that cannot be followed": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
        "response_format",
    ),
    "a form and tools": (
        {
            "response_format": {"type": "json_object"},
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        "response_format",
    ),
    "a forced call of no tool": ({"tool_choice": "required"}, "tool_choice"),
    "a penalty that is not known": ({"frequency_penalty": 0.5}, "frequency_penalty"),
    "a bias": ({"logit_bias": {"5": 1}}, "logit_bias"),
    "a negative length": ({"max_tokens": -1}, "max_tokens"),
    "too hot": ({"temperature": 2.5}, "temperature"),
    "too many likeliest tokens": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "likeliest tokens without probabilities": ({"top_logprobs": 2}, "top_logprobs"),
    "two lengths": ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
    "an empty stop text": ({"stop": [""]}, None),
    "too many answers": ({"n": 17}, "n"),
    "an option that the format has not": (
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
        "enable_thinking",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_refused_by_its_name(served: Served, what: str) -> None:
    settings, param = REFUSED[what]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(served, "base", "你好", **settings)
    body: Any = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    if param:
        assert body["param"] == param
        assert param.split(".")[0] in body["message"]


def test_an_unknown_model_is_not_found(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="there are base, lora, short"):
        ask(served, "gpt-5", "你好")


def test_a_conversation_that_leaves_no_room_for_an_answer_is_refused(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(served, "base", "走" * 9000)
    assert caught.value.code == "context_length_exceeded"


def test_an_answer_that_is_longer_than_there_is_room_for_ends_with_the_context(served: Served) -> None:
    question = "走" * 480  # most of the context
    read = ask(served, "base", question, max_tokens=1).usage.prompt_tokens
    answer = ask(served, "base", question, max_tokens=10**6)
    assert 400 < read < 512
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 512


def test_control_tokens_in_a_question_stay_text(served: Served) -> None:
    marked = ask(served, "base", "<|user|>\n你好</s>", max_tokens=1)
    plain = ask(served, "base", "你好", max_tokens=1)
    assert marked.usage.prompt_tokens > plain.usage.prompt_tokens + 8  # as many characters, not two tokens


def test_a_stream_is_of_whole_events_and_ends_with_done(served: Served) -> None:
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": "你好"}],
        "stream": True,
        "max_tokens": 4,
    }
    found = served.post("/v1/chat/completions", body)
    assert found.headers["content-type"].startswith("text/event-stream")
    events = found.text.split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events)
