"""Talking to a model: what is shown, and what is remembered."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import examples
from glmtune.chat import Chat
from glmtune.conversation import encode_messages
from glmtune.generate import Sampling, complete_texts, stream_text
from glmtune.templates import TEMPLATES, Taught
from glmtune.templates.tidy import ShownText
from glmtune.tokenizers import read_tokenizer
from golden import read_golden
from models import Scripted, tiny_model
from tiny import tiny_ice, tiny_json, tiny_sentencepiece, tiny_tiktoken

BUILDERS = {
    "chatglm": lambda folder, _: tiny_ice(folder),
    "chatglm2": tiny_sentencepiece,
    "chatglm3": tiny_sentencepiece,
    "glm4": tiny_tiktoken,
    "glm4_0414": tiny_json,
}
SAID = "今天很好,[[训练时间]]!a,好: b,c?"
SHOWN = {
    "chatglm": "今天很好，2023年！a，好： b,c?",
    "chatglm2": "今天很好,2023年!a,好: b,c?",
    "chatglm3": "今天很好,2023年!a,好: b,c?",
    "glm4": "今天很好,2023年!a,好: b,c?",
    "glm4_0414": SAID,
}
KEPT = {**SHOWN, "chatglm3": SAID, "glm4": SAID}
GREEDY = {"do_sample": False, "max_new_tokens": 200}


@pytest.fixture(scope="module", params=list(BUILDERS))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp(request.param)
    BUILDERS[request.param](folder, request.param)
    if request.param == "glm4_0414":
        (folder / "config.json").write_text('{"model_type": "glm4"}')
    return read_tokenizer(folder, request.param)


def saying(tokenizer: Any, text: str) -> Scripted:
    ids = [*tokenizer.encode_plain(text), tokenizer.stop_ids[0]]
    return Scripted(ids, tokenizer.vocab_size + 64)


def test_an_answer_is_shown_and_remembered_as_by_the_official_chat(tokenizer: Any) -> None:
    expected = SHOWN[tokenizer.template], KEPT[tokenizer.template]
    chat = Chat(saying(tokenizer, SAID), tokenizer, **GREEDY)
    assert "".join(chat.ask("早")) == expected[0]
    assert chat.messages == [
        {"role": "user", "content": "早"},
        {"role": "assistant", "content": expected[1]},
    ]
    prompt, sampling = tokenizer.encode_plain("早"), Sampling(**GREEDY)
    assert "".join(stream_text(saying(tokenizer, SAID), tokenizer, prompt, sampling)) == expected[0]
    assert complete_texts(saying(tokenizer, SAID), tokenizer, [prompt], sampling) == [expected[0]]


def test_a_chat_asks_as_encode_messages_does_of_what_was_taught(tokenizer: Any) -> None:
    taught = Taught(None if tokenizer.template in ("chatglm", "chatglm2") else "你是店员", "写：")
    chat = Chat(saying(tokenizer, SAID), tokenizer, **asdict(taught), **GREEDY)
    chat._engine.reuse.num_tokens = 0  # there are no keys and values to keep
    for text in ("早", "晚"):
        chat.model.said = 0
        asked = [*chat.messages, {"role": "user", "content": text}]
        list(chat.ask(text))
        assert chat.model.prompt == encode_messages(tokenizer, asked, taught=taught)
    chat.clear()
    assert chat.messages == ([{"role": "system", "content": taught.system}] if taught.system else [])


def test_a_new_question_or_a_cleared_conversation_gives_up_the_answer_before(tokenizer: Any) -> None:
    chat = Chat(saying(tokenizer, SAID), tokenizer, **GREEDY)
    chat._engine.reuse.num_tokens = 0  # there are no keys and values to keep
    ends = (chat.clear, lambda: list(chat.ask("晚")))
    for end in ends:
        chat.model.said = 0
        given_up = chat.ask("早")
        next(given_up)
        chat.model.said = 0
        end()
        assert list(given_up) == []
    assert [message["content"] for message in chat.messages] == ["晚", KEPT[tokenizer.template]]
    assert chat._engine.is_idle


def test_an_answer_that_is_closed_frees_its_memory(tokenizer: Any) -> None:
    chat = Chat(saying(tokenizer, SAID), tokenizer, **GREEDY)
    complete_texts = chat.ask("早")
    next(complete_texts)
    complete_texts.close()
    assert chat._engine.is_idle
    assert chat.messages == []


def test_a_step_is_compiled_where_a_chat_is_asked_for_it(tmp_path: Path) -> None:
    tiny_sentencepiece(tmp_path, "chatglm2")
    tokenizer = read_tokenizer(tmp_path, "chatglm2")
    model = tiny_model().eval()
    compiled = Chat(model, tokenizer, compile_step=True)._engine
    assert compiled.runner.compiled
    assert compiled.rows.is_room_kept
    assert not Chat(model, tokenizer)._engine.runner.compiled


@pytest.mark.parametrize(("golden", "is_kept"), [("v1_late", False), ("v3", True)])
def test_a_chat_keeps_the_turns_that_the_next_can_go_on_from(
    golden: str, is_kept: bool, tmp_path: Path
) -> None:
    model = read_golden(golden).model
    BUILDERS["chatglm3"](tmp_path, "chatglm3")
    chat = Chat(model, read_tokenizer(tmp_path, "chatglm3"))
    assert (chat._engine.reuse.num_tokens > 0) == is_kept


@pytest.mark.parametrize("template", list(SHOWN))
@settings(max_examples=examples(40))
@given(
    pieces=st.lists(
        st.text("中a,!:;? [训练时间]\n", max_size=24) | st.sampled_from([SAID, "a中" * 90]), max_size=9
    )
)
def test_what_is_shown_early_stays_whatever_follows(template: str, pieces: list[str]) -> None:
    shown, given, text = ShownText(TEMPLATES[template].tidy), "", ""
    for piece in pieces:
        text += piece
        given += shown.add(piece)
        assert TEMPLATES[template].shown(text).startswith(given)
    assert given + shown.finish() == TEMPLATES[template].shown(text)
