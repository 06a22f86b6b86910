"""The official chat calls, on tiny random models."""

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

from glmtune.conversation import encode_messages
from glmtune.errors import DataError
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration, load_base
from glmtune.models.official_chat import InvalidScoreLogitsProcessor, process_turns
from glmtune.templates.tidy import process_chatglm, process_chatglm2
from glmtune.tokenizers import read_tokenizer
from golden import GOLDENS
from models import letters_only
from tiny import tiny_sentencepiece, tiny_tiktoken

TEMPLATES = ["chatglm2", "chatglm3", "glm4"]
GREEDY = {"do_sample": False, "max_length": 90}
TOOLS = [{"role": "system", "content": "tools", "tools": [{"name": "weather"}]}]


@pytest.fixture(scope="module", params=TEMPLATES)
def pair(request, tmp_path_factory) -> tuple[Any, Any]:
    build = tiny_tiktoken if request.param == "glm4" else tiny_sentencepiece
    tokenizer = read_tokenizer(build(tmp_path_factory.mktemp(request.param), request.param))
    torch.manual_seed(0)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        ffn_hidden_size=48,
        kv_channels=8,
        num_attention_heads=4,
        multi_query_attention=True,
        multi_query_group_num=2,
        seq_length=128,
        add_bias_linear=False,
        add_qkv_bias=True,
        eos_token_id=tokenizer.stop_ids if request.param == "glm4" else 2,
        pad_token_id=tokenizer.pad_token_id,
        layernorm_epsilon=1e-5,
        rmsnorm=True,
        post_layer_norm=True,
    )
    return ChatGLMForConditionalGeneration(config).float().eval(), tokenizer


def history_of(tokenizer: Any) -> list[Any]:
    if tokenizer.template == "chatglm2":
        return [("早", "早上好")]
    return [{"role": "user", "content": "早"}, {"role": "assistant", "metadata": "", "content": "早上好"}]


def test_chat_answers_what_generate_gives_for_the_encoded_messages(pair):
    model, tokenizer = pair
    history = history_of(tokenizer)
    messages = [
        {"role": "user", "content": "早"},
        {"role": "assistant", "content": "早上好"},
        {"role": "user", "content": "去哪"},
    ]
    prompt = encode_messages(tokenizer, messages)
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_length=90,
        eos_token_id=tokenizer.stop_ids,
        pad_token_id=tokenizer.pad_token_id,
    )[0, len(prompt) :].tolist()
    response, new_history = model.chat(tokenizer, "去哪", history, **GREEDY)
    if tokenizer.template == "chatglm2":
        assert response == process_chatglm2(tokenizer.decode(output))
        assert new_history == [*history, ("去哪", response)]
    else:
        expected = process_turns(
            tokenizer.decode(output[:-1]), [*history, {"role": "user", "content": "去哪"}]
        )
        assert (response, new_history) == expected
    assert history == history_of(tokenizer)


def test_the_stream_ends_with_the_answer_of_chat(pair):
    model, tokenizer = pair
    settings = {**GREEDY, "logits_processor": letters_only(model, tokenizer)}
    answers = list(model.stream_chat(tokenizer, "去哪", history_of(tokenizer), **settings))
    assert answers[-1] == model.chat(tokenizer, "去哪", history_of(tokenizer), **settings)
    texts = [text for text, _ in answers]
    assert len(texts) > 10
    assert all(after.startswith(before) for before, after in pairwise(texts))


def test_a_given_cache_saves_reading_the_history_again(pair):
    model, tokenizer = pair
    settings = {"do_sample": False, "max_new_tokens": 6, "return_past_key_values": True}
    *_, (_, history, cache) = model.stream_chat(tokenizer, "早", **settings)
    before = cache.get_seq_length()
    *_, (_, history, cache) = model.stream_chat(tokenizer, "去", history, past_key_values=cache, **settings)
    assert before < cache.get_seq_length() <= before + 60
    assert len(history) == (2 if tokenizer.template == "chatglm2" else 4)


def test_a_stream_that_could_show_nothing_says_so(pair):
    """ChatGLM3's and GLM-4's last token is never shown: where one alone fits, nothing would be."""
    model, tokenizer = pair
    with pytest.raises(DataError, match="max_new_tokens: -1, but at least"):
        list(model.stream_chat(tokenizer, "去哪", max_new_tokens=-1))
    prompt = encode_messages(tokenizer, [{"role": "user", "content": "去哪"}])
    settings = {"do_sample": False, "logits_processor": letters_only(model, tokenizer)}
    stream = partial(model.stream_chat, tokenizer, "去哪", **settings)
    if tokenizer.template == "chatglm2":
        ((answer, _),) = stream(max_length=len(prompt) + 1)
        assert answer
    else:
        with pytest.raises(DataError, match=f"no room for an answer: {len(prompt) + 1} are allowed in all"):
            list(stream(max_length=len(prompt) + 1))
        with pytest.raises(DataError, match="max_new_tokens: 1, but at least 2 here") as caught:
            list(stream(max_new_tokens=1))
        assert "max_new_tokens=2 or more" in caught.value.hint
        *_, (_, _, cache) = stream(max_new_tokens=2, return_past_key_values=True)
        with pytest.raises(DataError, match="no room for an answer"):
            list(stream(past_key_values=cache, max_length=len(prompt)))


def test_sampling_needs_no_settings_and_stops(pair):
    model, tokenizer = pair
    torch.manual_seed(1)
    assert model.chat(tokenizer, "早", max_length=80)[1]
    assert len(list(model.stream_chat(tokenizer, "早", max_new_tokens=5, repetition_penalty=1.1))) <= 5
    with pytest.raises(TypeError, match="nonsense"):
        list(model.stream_chat(tokenizer, "早", nonsense=1))


def test_a_given_logits_processor_is_used_and_left_as_it_was(pair):
    model, tokenizer = pair
    stop = tokenizer.stop_ids[0]

    def stop_at_once(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -1.0).index_fill(1, torch.tensor([stop]), 0.0)

    given = LogitsProcessorList([stop_at_once])
    response, _ = model.chat(tokenizer, "早", logits_processor=given, **GREEDY)
    assert response == ""
    assert len(given) == 1


def test_scores_that_are_not_finite_give_the_official_fallback():
    scores = torch.tensor([[0.0] * 8, [1.0] * 7 + [float("nan")]])
    assert InvalidScoreLogitsProcessor()(torch.zeros(2, 1), scores).argmax(-1).tolist() == [5, 5]
    assert torch.equal(InvalidScoreLogitsProcessor()(torch.zeros(1, 1), scores[:1]), scores[:1])


@pytest.mark.parametrize(
    ("answer", "tidy"),
    [
        (" 早,安!真的?对:好; ", "早，安！真的？对：好；"),
        ("[[训练时间]]年底", "2023年年底"),
        ("yes, it is: 1,2;3!", "yes, it is: 1,2;3!"),
        ("a,好 好,a 1:好", "a，好 好，a 1：好"),
        ("好,,好", "好，，好"),
    ],
)
def test_chatglm_6b_s_punctuation_is_full_width_beside_chinese_letters(answer: str, tidy: str):
    assert process_chatglm(answer) == tidy


@pytest.mark.shared
@pytest.mark.parametrize("revision", ["v1_mid", "v1_late"])
def test_chatglm_6b_s_answers_are_tidied_as_officially(revision: str, shared: Path):
    model = load_base(GOLDENS / revision / "ckpt", device="cpu")
    cases = json.loads((shared / "goldens" / "tokens" / f"{revision}.json").read_text())["process_response"]
    for case in cases:
        assert model.process_response(case["response"]) == case["result"]


@pytest.mark.parametrize(("revision", "token"), [("early", 20005), ("mid", 20005), ("late", 5)])
def test_chatglm_6b_s_fallback_is_its_revision_s(revision: str, token: int):
    assert load_base(GOLDENS / f"v1_{revision}" / "ckpt", device="cpu").fallback_id == token
    scores = torch.full((1, 20010), float("inf"))
    assert InvalidScoreLogitsProcessor(token)(torch.zeros(1, 1), scores).argmax(-1).tolist() == [token]


def test_a_tool_call_is_parsed():
    code = "weather\n ```python\ntool_call(city='北京', days=[1, 2])\n```"
    content, history = process_turns(code, TOOLS)
    assert content == {"name": "weather", "parameters": {"city": "北京", "days": [1, 2]}}
    assert history[-1]["metadata"] == "weather"
    assert process_turns('weather\n{"city": "北京"}', TOOLS)[0]["parameters"] == {"city": "北京"}


@pytest.mark.parametrize(
    "call",
    [
        "__import__('os').getcwd()",
        "tool_call(city=open('x'))",
        "tool_call('x')",
        "tool_call(",
        "x = 1",
        "a.b(c=1)",
    ],
)
def test_code_is_never_run_and_what_cannot_be_read_is_given_as_text(call):
    content, _ = process_turns(f"weather\n```python\n{call}\n```", TOOLS)
    assert content == {"name": "weather", "content": f"```python\n{call}\n```"}


def test_without_tools_a_call_is_given_as_text():
    assert process_turns("interpreter\nprint(1)", [])[0] == {"name": "interpreter", "content": "print(1)"}


def test_several_turns_in_one_answer_are_taken_apart():
    content, history = process_turns("\n a <|assistant|> \n b", [])
    assert content == "b"
    assert [message["content"] for message in history] == ["a", "b"]
