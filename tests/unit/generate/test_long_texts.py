"""Texts longer than what a model was made for are answered, and that is said."""

from pathlib import Path
from typing import Any

import pytest

from glmtune import load_model, load_tokenizer
from glmtune.errors import ConfigError, DataError
from glmtune.generate import Chat, Engine, Request, Sampling, complete, engine
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder

SAID = "longer than the 16 tokens that the model was made for"
SHORT = Sampling(do_sample=False, max_new_tokens=3)
BUILDERS = {
    "ChatGLM3": lambda folder: tiny_folder(folder, seq_length=16),
    "ChatGLM-6B": lambda folder: tiny_v1_folder(folder, max_sequence_length=16),
    "GLM-4-0414": lambda folder: tiny_hf_folder(folder, "GLM-4-0414", max_position_embeddings=16),
}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(engine, "tell", lines.append)
    return lines


@pytest.fixture(scope="module", params=list(BUILDERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = BUILDERS[request.param](tmp_path_factory.mktemp(request.param))
    return load_model(folder), load_tokenizer(folder)


def test_a_chat_says_once_that_a_conversation_is_long(pair: tuple[Any, Any], said: list[str]) -> None:
    chat = Chat(*pair, do_sample=False, max_new_tokens=3)
    list(chat.ask("今天天气很好，" * 20))
    assert len(said) == 1
    assert SAID in said[0]
    list(chat.ask("好"))
    assert len(said) == 1
    chat.clear()
    list(chat.ask("今天天气很好，" * 30))
    assert len(said) == 2


def test_several_prompts_are_counted(pair: tuple[Any, Any], said: list[str]) -> None:
    model, tokenizer = pair
    prompts = [tokenizer.get_prefix_tokens() + tokenizer.encode_plain("天" * n) for n in (1, 40, 80)]
    if tokenizer.template == "chatglm":
        prompts = [[*prompt, *tokenizer._asking(prompt)] for prompt in prompts]
    assert all(len(ids) == 3 for ids in complete(model, prompts, SHORT, stop_ids=[]))
    (line,) = said
    assert "2 of 3 prompts are" in line
    assert SAID in line
    assert f"({len(prompts[2]):,} tokens)" in line


def test_an_answer_that_grows_past_the_length_is_told(tmp_path: Path, said: list[str]) -> None:
    model = load_model(BUILDERS["ChatGLM3"](tmp_path))
    running = Engine(model)
    running.submit(Request([5] * 10, Sampling(do_sample=False, max_new_tokens=20)))
    steps = 0
    while not running.is_idle:
        running.step()
        steps += 1
        assert bool(said) == (10 + steps > 16)
    assert steps == 20


def test_a_text_far_past_the_length_is_refused_before_anything_is_computed(
    pair: tuple[Any, Any], said: list[str]
) -> None:
    model, tokenizer = pair
    chat = Chat(model, tokenizer, do_sample=False, max_new_tokens=3)
    with pytest.raises(DataError, match=r"prompt: 9,\d\d\d tokens, where this model reads 8,192") as caught:
        list(chat.ask("天" * 9_000))
    assert "clear" in caught.value.hint
    assert not said
    assert len(list(chat.ask("好"))) <= 3
    running = Engine(model)
    for call in (running.remember, lambda ids: running.submit(Request(ids, SHORT))):
        with pytest.raises(DataError, match="8,193 tokens"):
            call([5] * 8193)
    assert running.is_idle


@pytest.mark.parametrize(("context", "most"), [(16, 8192), (512, 8192), (32_768, 524_288), (None, None)])
def test_the_bound_grows_with_the_length_that_a_model_was_made_for(
    context: int | None, most: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_context_of", lambda _: context)
    assert Engine(load_model(BUILDERS["ChatGLM3"](tmp_path))).max_prompt == most


def test_a_question_that_leaves_no_room_is_refused_by_the_official_calls(tmp_path: Path) -> None:
    folder = BUILDERS["ChatGLM3"](tmp_path)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    for call in (model.chat, lambda *args, **kwargs: list(model.stream_chat(*args, **kwargs))):
        with pytest.raises(Exception, match="no room for an answer") as caught:
            call(tokenizer, "今天", max_length=4)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**64), ("seed", -(2**63) - 1), ("seed", 10**5000), ("max_new_tokens", 10**30),
        ("top_k", 10**30), ("temperature", 10**400), ("temperature", float("inf")), ("top_p", float("nan")),
        ("repetition_penalty", float("inf")),
    ],
    ids=lambda value: str(value)[:12] if not isinstance(value, int) else "large",
)  # fmt: skip
def test_a_number_that_no_draw_can_use_is_refused_with_its_range(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: must be .*, got") as caught:
        Sampling(**{name: value})
    assert len(str(caught.value)) < 200
