"""Texts longer than what a model was made for are answered, and that is said."""

from pathlib import Path
from typing import Any

import pytest

from glmtune import load_model, load_tokenizer
from glmtune.chat import Chat
from glmtune.conversation import encode_latest, encode_messages
from glmtune.errors import ConfigError, DataError
from glmtune.generate import Engine, Request, Sampling, complete, engine
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


class Asked:
    """Lines that were told, and prompts that were read."""

    def __init__(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.prompts: list[list[int]] = []
        submit = chat._engine.submit
        monkeypatch.setattr("glmtune.log.tell", self.lines.append)
        monkeypatch.setattr(
            chat._engine,
            "submit",
            lambda request: self.prompts.append(list(request.prompt)) or submit(request),
        )


def test_a_chat_leaves_out_the_oldest_rounds_that_no_longer_fit_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path, seq_length=64)
    tokenizer = load_tokenizer(folder)
    chat = Chat(load_model(folder), tokenizer, system="你好", do_sample=False, max_new_tokens=3)
    asked = Asked(chat, monkeypatch)
    left_out = []
    for number in range(20):
        list(chat.ask(f"今天{number}"))
        start, rounds = chat.messages[:1], chat.messages[1:-1]
        lengths = []
        for count in range(number + 1):
            ids = encode_messages(tokenizer, [*start, *rounds[2 * count :]])
            lengths.append(len(ids))
            if ids == asked.prompts[-1]:
                left_out.append(count)
        *_, before, now = [0, 0, *left_out]
        assert lengths[now] <= 64 - 3
        if now > before:  # not before it must, but then a quarter of the room becomes free
            assert lengths[before] > 64 - 3
            assert lengths[now] <= 61 - 15 < lengths[now - 1]
    assert len(chat.messages) == 1 + 2 * 20
    chat.messages = chat.messages[:3]
    list(chat.ask("好"))
    assert asked.prompts[-1] == encode_messages(tokenizer, chat.messages[:-1])
    assert len(left_out) == 20
    assert left_out == sorted(left_out)
    assert left_out[0] == 0
    numbers = sorted({count for count in left_out if count})
    assert len(numbers) > 2
    assert asked.lines == [
        f"> the oldest {'round no longer fits' if count == 1 else f'{count} rounds no longer fit'} the "
        f"model's 64 tokens and {'is' if count == 1 else 'are'} left out"
        for count in numbers
    ]


@pytest.mark.parametrize(("max_new_tokens", "room"), [(3, 3), (512, 16)])
def test_the_room_for_an_answer_is_at_most_a_quarter_of_the_context(
    max_new_tokens: int, room: int, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_folder(tmp_path))
    talk = [{"role": role, "content": "好"} for role in ("user", "assistant") * 20] + [
        {"role": "user", "content": "早"}
    ]
    limits = {"context": 64, "max_new_tokens": max_new_tokens}
    ids, count = encode_latest(tokenizer, talk, **limits)
    assert ids == encode_messages(tokenizer, talk[2 * count :])
    free = (64 - room) // 4
    assert len(ids) <= 64 - room - free < len(encode_messages(tokenizer, talk[2 * count - 2 :]))
    while len(encode_messages(tokenizer, talk[2 * count :])) <= 64 - room:
        assert encode_latest(tokenizer, talk, **limits, num_left_out=count)[1] == count
        count -= 1
    assert encode_latest(tokenizer, talk, **limits, num_left_out=count)[0] == ids
    assert encode_latest(tokenizer, talk[-3:], **limits) == (encode_messages(tokenizer, talk[-3:]), 0)
    long = [*talk, {"role": "assistant", "content": "早"}, {"role": "user", "content": "天" * 90}]
    assert encode_latest(tokenizer, long, **limits) == (encode_messages(tokenizer, long[-1:]), 21)
    assert encode_latest(tokenizer, long, **{**limits, "context": None})[1] == 0
    tight = {"context": len(encode_messages(tokenizer, talk[-3:])) + 1, "max_new_tokens": 1}
    assert encode_latest(tokenizer, talk, **tight)[1] == 19  # rather than the question alone


@pytest.mark.parametrize("template", ["chatglm2", "chatglm3"])
def test_the_official_calls_leave_out_rounds_only_where_the_model_has_no_room(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("glmtune.log.tell", lines.append)
    folder = tiny_folder(tmp_path, template, seq_length=128)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    talk: list[Any] = [("今天", "好")] * 30
    if template == "chatglm3":
        talk = [{"role": "user", "content": "今天"}, {"role": "assistant", "content": "好"}] * 30
    read: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: read.append(args[0].shape[1]))
    for history, is_long in ((talk[:4], False), (talk, True)):
        read.clear()
        _, whole = model.chat(tokenizer, "早", history=history, do_sample=False, max_new_tokens=2)
        assert whole[: len(history)] == history
        first = read[0]
        read.clear()
        list(model.stream_chat(tokenizer, "早", history=history, do_sample=False, max_new_tokens=2))
        assert read[0] == first <= 128 - (32 if is_long else 0)
        assert len(lines) == 2 * is_long
    assert all(line.endswith("the model's 128 tokens and are left out") for line in lines)


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
    assert "shorten it" in caught.value.hint
    assert not said
    assert len(list(chat.ask("好"))) <= 3
    running = Engine(model)
    for call in (running.remember, lambda ids: running.submit(Request(ids, SHORT))):
        with pytest.raises(DataError, match="8,193 tokens"):
            call([5] * 8193)
    assert running.is_idle


@pytest.mark.parametrize(("context", "most"), [(16, 8192), (512, 8192), (32_768, 524_288), (None, None)])
def test_the_bound_grows_with_the_length_that_a_model_was_made_for(
    context: int | None, most: int | None, tmp_path: Path
) -> None:
    model = load_model(BUILDERS["ChatGLM3"](tmp_path))
    model.config.max_position_embeddings = context
    assert Engine(model).max_prompt == most


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
