"""Laws of runs with replay: resumed == uninterrupted, 1x8 == 8x1, two processes == one, and nothing twice."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forks import run_ranks
from glmtune import load_model, load_tokenizer
from glmtune.errors import ConfigError
from glmtune.general import replay_prompts
from glmtune.generate import Engine
from glmtune.recipe import Recipe, load_recipe
from glmtune.run_files import read_json_lines
from glmtune.templates import Taught
from glmtune.workflows import base_answers, replay
from glmtune.workflows.events import Answered, Saved, drain
from glmtune.workflows.execute import training
from models import tiny_folder
from resumed import assert_same_weights, train_in_parts

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
REPLAYED = ("retain.ratio=0.3", "retain.max_new_tokens=6")
SIZES = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16, "seq_length": 1024}
METHODS = {
    "lora": ["method=lora"],
    "full": ["method=full"],
    "ptuning": ["method=ptuning", "method.num_prefix_tokens=4"],
    "qlora": ["method=lora", "quant=nf4"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), **SIZES)


def recipe(model: Path, output: Path, *words: str) -> Recipe:
    values = {
        "model": str(model),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 12, "holdout_rows": 2},
        "train": {"steps": 4, "batch_size": 8, "lr": 1e-2, "eval_every": 2, "save_every": 2},
        "samples": {"prompts": []},
    }
    return load_recipe(values, [*REPLAYED, *words])


def lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_json_lines(run / "metrics.jsonl") if "loss" in line]


def notes(settings: Recipe, **how: Any) -> list[str]:
    heard: list[str] = []
    drain(training(settings, **how), lambda event: heard.append(getattr(event, "text", "")))
    return [text for text in heard if text.startswith("replay: ")]


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m != "lora")) for m in METHODS]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(
    model: Path, tmp_path: Path, method: str
) -> None:
    whole, parts = (recipe(model, tmp_path / name, *METHODS[method]) for name in ("whole", "parts"))
    drain(training(whole))
    train_in_parts(parts, stop=2)
    same = ("step", "loss", "losses", "grad_norm")
    first, second = (
        [{name: line[name] for name in same} for line in lines(tmp_path / run)] for run in ("whole", "parts")
    )
    assert first == second
    assert any("replay" in line["losses"] for line in first)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("targets", ["likeliest", "answers"])
def test_eight_micro_batches_of_one_row_equal_one_of_eight(model: Path, tmp_path: Path, targets: str) -> None:
    for size in (1, 8):
        words = (f"train.micro_batch_size={size}", f"retain.targets={targets}", "method.dropout=0")
        drain(training(recipe(model, tmp_path / str(size), *words)))
    for one, eight in zip(lines(tmp_path / "1"), lines(tmp_path / "8"), strict=True):
        assert eight["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert eight["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        assert eight["losses"] == pytest.approx(one["losses"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / f"cache{number}"))
        words = (
            f"model={model}", f"output={tmp_path / str(number)}", f"data.train={ADVERTS}", "data.max_rows=12",
            "data.holdout_rows=2", "data.max_tokens=400", "train.steps=4", "train.batch_size=8",
            "train.lr=1e-2", "method.dropout=0", "samples.prompts=[]", *REPLAYED,
        )  # fmt: skip
        done = run_ranks(number, "-m", "glmtune", "train", *words, encoding="utf-8")
        assert done.returncode == 0, done.stderr
    texts = [(tmp_path / number / "replay.jsonl").read_text(encoding="utf-8") for number in ("1", "2")]
    assert texts[0] == texts[1]
    for one, two in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)


def test_answers_of_an_earlier_run_are_taken(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    first = notes(recipe(model, tmp_path / "first"))
    assert any("the base answers" in line and "answered before" not in line for line in first)

    def engine(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(base_answers, "engine_beside", engine)
    second = notes(recipe(model, tmp_path / "second"))
    assert any(line.endswith("all answered by this base before") for line in second)
    texts = [(tmp_path / run / "replay.jsonl").read_bytes() for run in ("first", "second")]
    assert texts[0] == texts[1]


def test_a_changed_base_is_asked_anew(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    other = tiny_folder(tmp_path / "other", lively=1.01, **SIZES)
    words = ("train.steps=1", "train.batch_size=2")
    runs = {"base": (model, words), "quantised": (model, (*words, "quant=int8")), "changed": (other, words)}
    for name, (folder, own) in runs.items():
        drain(training(recipe(folder, tmp_path / name, *own)))
    assert len(list((tmp_path / "cache" / "answers").glob("*.jsonl"))) == len(runs)


def test_interrupted_answers_go_on_where_they_were(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tokenizer = load_model(model), load_tokenizer(model)
    prompts = replay_prompts()[:24]
    monkeypatch.setattr(base_answers, "PART", 10)
    asked: list[int] = []
    submit = Engine.submit

    def counted(self: Any, request: Any) -> int:
        asked.append(1)
        number: int = submit(self, request)
        return number

    monkeypatch.setattr(Engine, "submit", counted)
    how: dict[str, Any] = {"taught": Taught(), "max_new_tokens": 5}
    sampling = replace(base_answers.OWN_DISTRIBUTION, max_new_tokens=5)
    answering = base_answers.Answering(base, tokenizer, Taught(), sampling, cache=tmp_path / "some.jsonl")
    assert next(answering.parts(prompts)) == 10
    given = len(asked)
    gone_on = base_answers.answer_prompts(base, tokenizer, prompts, **how, cache=tmp_path / "some.jsonl")
    assert len(asked) == sum(len(prompt.turns) for prompt in prompts) > given > 0
    assert gone_on == base_answers.answer_prompts(base, tokenizer, prompts, **how, cache=None)


def test_a_run_goes_on_with_the_answers_that_it_began_with(model: Path, tmp_path: Path) -> None:
    settings = recipe(model, tmp_path / "run", "train.steps=2", "train.save_every=1")
    events = training(settings)
    while not isinstance(next(events), Saved):
        pass
    events.close()
    path = tmp_path / "run" / "replay.jsonl"
    content = path.read_bytes()
    assert json.loads((tmp_path / "run" / "env.json").read_text())["replay_sha256"]
    path.write_bytes(content.replace(b'"turn": 1', b'"turn": 2', 1))
    with pytest.raises(ConfigError, match=r"replay\.jsonl: the base's answers are not those"):
        drain(training(settings, resume=True))
    path.unlink()
    with pytest.raises(ConfigError, match=r"replay\.jsonl: the base's answers are gone"):
        drain(training(settings, resume=True))
    path.write_bytes(content)
    drain(training(settings, resume=True))


@pytest.mark.parametrize(("allowed", "number"), [(1e-9, replay.FIRST), (1.35, 13)])
def test_few_answers_are_asked_for_where_more_would_take_too_long(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: float, number: int
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(replay, "SHORT_S", 0.0)
    monkeypatch.setattr(replay, "expected_seconds", lambda *_: allowed / replay.MOST_SHARE)
    ticks = SimpleNamespace(perf_counter=count(0).__next__)  # the first ten prompts take one
    monkeypatch.setattr(replay, "time", ticks)
    settings = recipe(model, tmp_path / "run", "train.steps=20", "train.eval_every=20")
    answered: list[Answered] = []
    said: list[str] = []

    def hear(event: object) -> None:
        said.append(getattr(event, "text", ""))
        answered.extend([event] if isinstance(event, Answered) else [])

    drain(training(settings), hear)
    assert any(f" s, more than 15% of the run: it has {number} of them" in line for line in said)
    assert any("retain.ratio=0" in line for line in said)
    assert answered[-1].done == number <= answered[-1].total
    names = {line["name"] for line in read_json_lines(tmp_path / "run" / "replay.jsonl")}
    assert len(names) == number
    assert len(lines(tmp_path / "run")) == 20


def test_no_answer_is_left_out_that_takes_less_than_a_minute(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "expected_seconds", lambda *_: 0.0)
    said = notes(recipe(model, tmp_path / "run", "train.steps=20", "train.eval_every=20"))
    assert not any("of the run" in line for line in said)
