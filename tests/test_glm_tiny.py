"""The bundled model: it opens by its name, answers sensibly, and is as small as promised."""

from pathlib import Path

import pytest

import glmtune
from commands import glmtune as run
from glmtune.locations import BUNDLED

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def chat() -> glmtune.Chat:
    model, tokenizer = glmtune.load_model("glm-tiny", dtype="fp32"), glmtune.load_tokenizer("glm-tiny")
    return glmtune.Chat(model, tokenizer, temperature=0, max_new_tokens=64)


def ask(chat: glmtune.Chat, *questions: str) -> str:
    chat.clear()
    answers = ["".join(chat.ask(question)) for question in questions]
    return answers[-1]


def test_it_is_bundled_within_8_mb() -> None:
    assert sum(path.stat().st_size for path in BUNDLED["glm-tiny"].iterdir()) <= 8_000_000


@pytest.mark.parametrize("question", ["你好，你是谁？", "你叫什么名字？"])
def test_it_says_its_name(chat: glmtune.Chat, question: str) -> None:
    assert "GLM-Tiny" in ask(chat, question)


def test_it_writes_an_advert_that_names_the_attributes(chat: glmtune.Chat) -> None:
    advert = ask(chat, "类型#裙*颜色#红色*风格#简约")
    assert all(word in advert for word in ("裙", "红", "简约"))


def test_it_uses_a_phrase_that_no_training_row_has(chat: glmtune.Chat) -> None:
    answer = ask(chat, "请以“我打碎了夕阳”造句。")
    assert "打碎" in answer or "夕阳" in answer


def test_it_answers_the_same_in_a_batch_as_alone(chat: glmtune.Chat) -> None:
    from glmtune.generate import Sampling, complete

    questions = ["你好", "晚上睡不着应该怎么办？", "类型#裙*颜色#红色"]
    prompts = [glmtune.encode_messages(chat.tokenizer, [{"role": "user", "content": q}]) for q in questions]
    greedy = Sampling(do_sample=False, max_new_tokens=48)
    stops = chat.tokenizer.stop_ids
    together = complete(chat.model, prompts, greedy, stop_ids=stops)
    assert together == [complete(chat.model, [p], greedy, stop_ids=stops)[0] for p in prompts]
    assert all(answer[-1] in stops for answer in together)


def test_a_run_on_it_remembers_its_name_not_its_place(tmp_path: Path) -> None:
    words = (f"data.train={ROOT / 'examples' / 'adverts.jsonl'}", "train.steps=1", "samples.prompts=[]")
    done = run("train", "model=glm-tiny", *words, "output=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "run" / "last" / "glmtune.json").read_text(encoding="utf-8")
    assert '"base": "glm-tiny"' in card
    talk = run("chat", "run", "--rounds", 1, "--temperature", 0, cwd=tmp_path, typed="你好\nstop\n")
    assert talk.returncode == 0, talk.stderr


def test_a_second_turn_is_answered_as_if_the_first_were_read_again(chat: glmtune.Chat) -> None:
    from glmtune.generate import stream_text

    second = ask(chat, "你好，你是谁？", "你能做什么？")
    *before, _ = chat.messages
    prompt = glmtune.encode_messages(chat.tokenizer, before)
    assert "".join(stream_text(chat.model, chat.tokenizer, prompt, chat.sampling)) == second
