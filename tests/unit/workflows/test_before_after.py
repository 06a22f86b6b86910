"""The sample questions before step 1 and at the end: the answers of chat, in samples.jsonl and shown."""

import json
from pathlib import Path

import pytest
import torch

from commands import glmtune
from glmtune import Chat, load_model, load_tokenizer, train
from glmtune.reports.before_after import pair_answers
from glmtune.reports.html.page import write_report
from glmtune.templates import Taught
from glmtune.workflows.before_after import QUESTIONS, SampleQuestion, ask_questions
from glmtune.workflows.events import BeforeAndAfter
from models import tiny_folder

LONGEST = 12
WORDS = ("train.steps=4", "train.eval_every=2", "train.batch_size=2", "data.max_rows=8", "device=cpu",
         "samples.max_new_tokens=4", "data.max_tokens=400", "data.train=examples/adverts.jsonl")  # fmt: skip


def test_answers_are_those_of_a_chat_and_leave_the_training_as_it_was() -> None:
    model, tokenizer = load_model("glm-tiny", dtype="fp32"), load_tokenizer("glm-tiny")
    model.train()
    taught, before = Taught(system="简短地回答。"), torch.get_rng_state()
    lines = ask_questions(model, tokenizer, QUESTIONS, taught=taught, max_new_tokens=LONGEST)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    model.eval()
    for question, line in zip(QUESTIONS, lines, strict=True):
        drawn = {"do_sample": False} if question.seed is None else {"seed": question.seed}
        usual = {"temperature": 0.8, "top_p": 0.8, "top_k": 0} if drawn.get("seed") else {}
        chat = Chat(model, tokenizer, system=taught.system, max_new_tokens=LONGEST, **drawn, **usual)
        *_, last = ["".join(chat.ask(turn)) for turn in question.turns]
        assert line["answer"] == last
        assert line["prompt"] == question.turns[-1]
        assert line["turns"] == list(question.turns)
    assert len({line["answer"] for line in lines if line["seed"]}) > 1


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("392", True),
        ("980 个里有 392 个。", True),
        ("是 1,392", False),
        ("392 减去 2", False),
        ("三百", False),
    ],
)
def test_an_answer_is_right_by_its_last_number(answer: str, is_right: bool) -> None:
    assert SampleQuestion(("q",), number=392).describe(answer, 1.0)["is_right"] is is_right
    assert "is_right" not in SampleQuestion(("q",)).describe(answer, 1.0)


def test_the_sum_among_the_questions_has_the_answer_that_counts_as_right() -> None:
    [number] = [question.number for question in QUESTIONS if question.number is not None]
    assert number == sum(n % 2 != 0 and n % 5 != 0 for n in range(1, 981))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "model", "chatglm3")


def test_a_run_asks_before_step_1_and_at_the_end_and_shows_both(model: Path, tmp_path: Path) -> None:
    done = glmtune("train", f"model={model}", *WORDS, "output=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / "samples.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    num_asked = {step: sum(line["step"] == step for line in lines) for step in (0, 2, 4)}
    assert num_asked == {0: 1 + len(QUESTIONS), 2: 1, 4: 1 + len(QUESTIONS)}
    pairs = list(pair_answers(lines))
    assert [pair.asked.turns for pair in pairs] == [("你好",), *(question.turns for question in QUESTIONS)]
    for pair in pairs:
        assert pair.in_words() in done.stdout
    page = write_report([tmp_path / "run"], output=tmp_path / "page.html").read_text("utf-8")
    for words in (*QUESTIONS[0].turns, *QUESTIONS[-1].turns, "drawn with seed 3", "按种子 3 抽样", "wrong"):
        assert words in page


def test_a_run_that_stops_early_asks_then(model: Path, tmp_path: Path) -> None:
    words = ("train.lr=0", "train.patience=1", "train.steps=8")
    done = glmtune("train", f"model={model}", *WORDS, *words, "output=run", cwd=tmp_path)
    assert "stopped early" in done.stdout
    text = (tmp_path / "run" / "samples.jsonl").read_text("utf-8")
    pairs = list(pair_answers(map(json.loads, text.splitlines())))
    assert len(pairs) == 1 + len(QUESTIONS)
    assert all(pair.before.text == pair.after.text for pair in pairs)


@pytest.mark.parametrize("samples", [{"prompts": []}, {"built_in": False}])
def test_questions_that_are_turned_off_are_not_asked(model: Path, tmp_path: Path, samples: dict) -> None:
    events: list[object] = []
    settings = {"train": {"steps": 1, "batch_size": 2}, "samples": {"max_new_tokens": 4, **samples}}
    data = {"train": "examples/adverts.jsonl", "max_rows": 8, "max_tokens": 400}
    train({"model": str(model), "data": data}, output=tmp_path / "run", on_event=events.append, **settings)
    assert not [event for event in events if isinstance(event, BeforeAndAfter)]
    path = tmp_path / "run" / "samples.jsonl"
    assert not path.exists() or "built_in" not in path.read_text("utf-8")


def test_lines_of_an_earlier_version_are_paired_too() -> None:
    lines = [{"step": step, "prompt": "你好", "answer": str(step)} for step in (0, 5, 10)]
    [pair] = pair_answers(lines)
    assert (pair.before.text, pair.after.text, pair.before.seconds) == ("0", "10", None)
    assert "(" not in pair.in_words()
    assert not list(pair_answers(lines[:1])) and not list(pair_answers(lines[1:]))
