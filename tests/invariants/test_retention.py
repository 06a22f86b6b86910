"""Laws of the report of forgetting: its figures are those of two models run apart; it changes no run."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import glmtune as glmtune_in_python
from commands import glmtune
from forks import run_ranks
from glmtune import load_model, load_tokenizer
from glmtune.conversation import encode_messages
from glmtune.general import held_out_prompts
from glmtune.generate import Sampling, complete
from glmtune.objectives.teacher import LIKELIEST
from glmtune.recipe import Recipe, load_recipe
from glmtune.workflows import replay, report_forgetting
from glmtune.workflows.events import Note, drain
from glmtune.workflows.execute import training
from glmtune.workflows.general import advice_on_run, measuring
from models import tiny_folder

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
PROMPTS, TOKENS = 9, 6
"""Nine prompts: one of them has two turns."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


def recipe(model: Path, output: Path, *words: str) -> Recipe:
    values = {
        "model": str(model),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 200, "max_rows": 24, "holdout_rows": 4},
        "train": {"steps": 4, "batch_size": 4, "lr": 1e-2, "eval_every": 2},
        "samples": {"prompts": []},
        "retain": {"ratio": 0, "report_prompts": PROMPTS, "max_new_tokens": TOKENS},
        "dtype": "fp32",
    }
    return load_recipe(values, words)


def facts_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "forgetting.json").read_text(encoding="utf-8")))


def train(recipe: Recipe, **options: Any) -> dict[str, Any]:
    result = drain(training(recipe, **options))
    return facts_of(result.path)


def log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    """The log probabilities of each next token of a row alone, all logits in memory, in fp64. (T, V)"""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)


def test_figures_are_those_of_both_models_run_row_by_row(model: Path, tmp_path: Path) -> None:
    facts = train(recipe(model, tmp_path / "run", "method=lora"))
    base, tuned = load_model(model, dtype="fp32"), load_model(tmp_path / "run" / "last", dtype="fp32")
    tokenizer = load_tokenizer(model)
    kls, losses, texts = list[float](), list[list[float]](), list[tuple[str, str]]()
    sampling, stop_ids = Sampling(do_sample=False, max_new_tokens=TOKENS), frozenset(tokenizer.stop_ids)
    for prompt in held_out_prompts()[:PROMPTS]:
        messages = list[dict[str, str]]()
        for question in prompt.turns:
            messages.append({"role": "user", "content": question})
            ids = encode_messages(tokenizer, messages)
            [answer], [other] = (complete(m, [ids], sampling, stop_ids=stop_ids) for m in (base, tuned))
            before, after = (log_probs(m, [*ids, *answer]) for m in (base, tuned))
            for i, token in enumerate(answer, start=len(ids) - 1):
                known = [token, *(t for t in before[i].topk(LIKELIEST).indices.tolist() if t != token)]
                p, q = (each[i].exp()[known[:LIKELIEST]] for each in (before, after))
                rest = [1 - float(each.sum()) for each in (p, q)]
                kl = float((p * (p / q).log()).sum()) + rest[0] * math.log(rest[0] / rest[1])
                kls.append(kl)
                losses.append([-float(before[i, token]), -float(after[i, token])])
            said = [tokenizer.decode([t for t in each if t not in stop_ids]) for each in (answer, other)]
            texts.append((said[0].strip(), said[1].strip()))
            messages.append({"role": "assistant", "content": said[0].lstrip()})
    assert facts["tokens"] == len(kls)
    assert facts["kl"]["mean"] == pytest.approx(sum(kls) / len(kls), rel=1e-4)
    assert facts["kl"]["mean"] > 1e-4  # something was learned, so there is a difference to be found
    for name, column in (("base", 0), ("tuned", 1)):
        mean = sum(each[column] for each in losses) / len(losses)
        assert facts["loss"][name] == pytest.approx(mean, rel=1e-5)
    assert [(each["base"].strip(), each["tuned"].strip()) for each in facts["compared"]] == texts
    changed = sum(one != other for one, other in texts)
    assert facts["changed_share"] == pytest.approx(changed / len(texts))


@pytest.mark.parametrize(
    "method",
    ["lora", "full", *(pytest.param(name, marks=pytest.mark.slow) for name in ("freeze", "ptuning"))],
)
def test_the_report_changes_no_weight_and_sees_the_untouched_base(
    model: Path, tmp_path: Path, method: str
) -> None:
    words = (f"method={method}",) + (("method.num_layers=1",) if method == "freeze" else ())
    with_report = recipe(model, tmp_path / "with", *words, "retain.report=evaluations")
    facts = train(with_report)
    drain(training(recipe(model, tmp_path / "without", *words, "retain.report=off")))
    files = [
        sorted((tmp_path / name / "last").resolve().glob("*.safetensors")) for name in ("with", "without")
    ]
    assert files[0]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / "without" / "forgetting.json").exists()
    lines = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    by_step = {line["step"]: line["general_kl"] for line in lines if "general_kl" in line}
    assert list(by_step) == [0, 2, 4]
    assert by_step[4] == facts["kl"]["mean"] > 0
    if method != "ptuning":  # whose prefix is there from the start
        assert by_step[0] == pytest.approx(0, abs=1e-6)


def test_a_resumed_run_has_the_report_of_an_uninterrupted_one(model: Path, tmp_path: Path) -> None:
    whole = train(recipe(model, tmp_path / "whole"))
    parts = recipe(model, tmp_path / "parts")
    events = training(parts)
    for event in events:
        if type(event).__name__ == "Saved":
            events.close()
            break
    assert train(parts, resume=True) == whole


@pytest.mark.slow
def test_two_processes_have_the_report_of_one(model: Path, tmp_path: Path) -> None:
    words = [
        f"model={model}", f"data.train={ADVERTS}", "data.max_tokens=200", "data.max_rows=24", "dtype=fp32",
        "data.holdout_rows=4", "train.steps=2", "train.batch_size=4", "train.lr=1e-2", "method.dropout=0",
        "samples.prompts=[]", "retain.ratio=0", f"retain.report_prompts={PROMPTS}",
        f"retain.max_new_tokens={TOKENS}", "retain.report=evaluations",
    ]  # fmt: skip
    for count, name in ((1, "one"), (2, "two")):
        done = run_ranks(
            count, "-m", "glmtune", "train", *words, f"output={tmp_path / name}", encoding="utf-8"
        )
        assert done.returncode == 0, done.stderr
    one, two = (facts_of(tmp_path / name) for name in ("one", "two"))
    assert two["kl"]["mean"] == pytest.approx(one["kl"]["mean"], rel=1e-3)
    assert two["task"]["rows"] == one["task"]["rows"]
    assert [each["base"] for each in two["compared"]] == [each["base"] for each in one["compared"]]
    assert done.stdout.count("general prompts: kept: ") == 1


def test_the_command_afterwards_finds_what_the_run_found(model: Path, tmp_path: Path) -> None:
    at_end = train(recipe(model, tmp_path / "run"))
    words = {"model": str(tmp_path / "run" / "last"), "dtype": "fp32", "retain": {"report_prompts": PROMPTS}}
    again = load_recipe(words | {"retain": {"report_prompts": PROMPTS, "max_new_tokens": TOKENS}})
    folder, found = drain(measuring(again))
    assert folder == (tmp_path / "run" / "evaluations" / "step-000004-general")
    facts = facts_of(folder)
    assert facts["kl"]["mean"] == pytest.approx(at_end["kl"]["mean"], rel=1e-4)
    assert [each["tuned"] for each in facts["compared"]] == [each["tuned"] for each in at_end["compared"]]
    assert facts["verdict"] == found.verdict
    from_python = glmtune_in_python.evaluate(again, general=True, quiet=True)
    assert from_python.scores["compared"] == facts["compared"]
    assert from_python.scores["task"]["rows"] == at_end["task"]["rows"]  # the run's rows, by its recipe


def test_two_processes_measure_afterwards_what_one_does(model: Path, tmp_path: Path) -> None:
    """One of them speaks, writes, and ends with the code of a model that forgot."""
    train(recipe(model, tmp_path / "run"))
    asked = ["evaluate", str(tmp_path / "run"), "--general", "--fail-on-forgetting", "dtype=fp32"]
    asked += [f"retain.report_prompts={PROMPTS}", f"retain.max_new_tokens={TOKENS}", "retain.forgot=0"]
    for count in (1, 2):
        environment = os.environ | {"GLMTUNE_CACHE": str(tmp_path / f"cache-{count}")}
        output = ["--output", str(tmp_path / str(count)), "retain.drifted=0"]
        done = run_ranks(count, "-m", "glmtune", *asked, *output, env=environment, encoding="utf-8")
        assert done.returncode == 3, done.stderr
        assert done.stdout.count("all figures and answers: ") == 1
    one, two = (facts_of(tmp_path / str(count)) for count in (1, 2))
    assert two["compared"] == one["compared"]
    assert two["kl"]["mean"] == pytest.approx(one["kl"]["mean"], rel=1e-4)
    assert two["task"]["rows"] == one["task"]["rows"]


def test_a_training_by_two_processes_ends_with_the_code_of_its_verdict(model: Path, tmp_path: Path) -> None:
    words = [
        f"model={model}", f"data.train={ADVERTS}", "data.max_tokens=200", "data.max_rows=8", "train.steps=1",
        "train.batch_size=2", "retain.ratio=0", f"retain.report_prompts={PROMPTS}", "samples.prompts=[]",
        f"retain.max_new_tokens={TOKENS}", "train.lr=0.1", "--fail-on-forgetting",
    ]  # fmt: skip
    for forgot, code in (("1e9", 0), ("0", 3)):
        own = [f"output={tmp_path / forgot}", f"retain.forgot={forgot}", f"retain.drifted={forgot}"]
        done = run_ranks(2, "-m", "glmtune", "train", *words, *own, encoding="utf-8")
        assert done.returncode == code, done.stderr
        assert "nothing was measured" not in done.stderr


def test_a_script_learns_from_the_exit_code_that_a_model_forgot(model: Path, tmp_path: Path) -> None:
    words = [
        f"model={model}", f"data.train={ADVERTS}", "data.max_tokens=200", "data.max_rows=8", "train.steps=1",
        "train.batch_size=2", "retain.ratio=0", f"retain.report_prompts={PROMPTS}", "samples.prompts=[]",
        f"retain.max_new_tokens={TOKENS}", "dtype=fp32",
    ]  # fmt: skip
    harsh = ["retain.drifted=0", "retain.forgot=0"]
    done = glmtune("train", *words, *harsh, "output=harsh", "--fail-on-forgetting", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "general prompts: forgot: on 9 general prompts" in done.stdout
    assert "warning: forgot: most in" in done.stdout
    # a finished run has its verdict still
    done = glmtune("train", "harsh", "--resume", "--fail-on-forgetting", cwd=tmp_path)
    assert (done.returncode, "harsh: finished, at step 1" in done.stdout) == (3, True), done.stderr
    assert "general prompts, as the run found: forgot" in done.stdout
    done = glmtune("train", *words, "output=mild", "--fail-on-forgetting", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "general prompts: kept: " in done.stdout
    done = glmtune("train", *words, "output=x", "retain.report=off", "--fail-on-forgetting", cwd=tmp_path)
    assert done.returncode == 2
    assert "retain.report=off, so nothing is measured" in done.stderr
    done = glmtune(
        "evaluate", "harsh", "--general", "--json", "--fail-on-forgetting", "dtype=fp32", cwd=tmp_path
    )
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["verdict"] == "forgot"
    own = (tmp_path / "harsh" / "forgetting.json").read_bytes()
    done = glmtune("evaluate", "harsh", "--general", "--output", "harsh", cwd=tmp_path)
    assert done.returncode == 2
    assert "output: harsh is the folder of a run" in done.stderr
    assert (tmp_path / "harsh" / "forgetting.json").read_bytes() == own


def test_a_whole_model_needs_its_base_named(model: Path, tmp_path: Path) -> None:
    done = glmtune("evaluate", model, "--general", cwd=tmp_path)
    assert done.returncode == 2
    assert "hint: name the base's folder: --base FOLDER" in done.stderr
    few = (f"retain.report_prompts={PROMPTS}", f"retain.max_new_tokens={TOKENS}", "dtype=fp32")
    done = glmtune("evaluate", model, "--general", "--base", model, *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "general prompts: kept: on 9 general prompts 0 nats a token" in done.stdout
    done = glmtune("evaluate", model, "--fail-on-forgetting", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_run_that_kept_all_for_it_hardly_trained_says_so(model: Path, tmp_path: Path) -> None:
    for rate, is_told in (("1e-6", True), ("1e-2", False)):
        settings = recipe(model, tmp_path / rate, f"train.lr={rate}", "retain.drifted=50", "retain.forgot=60")
        lines = [event.text for event in training(settings) if isinstance(event, Note)]
        [line] = [line for line in lines if "little was learned" in line] or [""]
        assert ("raise train.lr (1e-06)" in line) == is_told, lines


def test_the_command_afterwards_advises_as_the_run_did(model: Path, tmp_path: Path) -> None:
    harsh = recipe(model, tmp_path / "run", "retain.drifted=0", "retain.forgot=0", "retain.ratio=0.1")
    [cure] = [
        event.text for event in training(harsh) if isinstance(event, Note) and "train anew" in event.text
    ]
    assert "train anew with retain.ratio=0.2 train.lr=" in cure
    again = load_recipe({"model": str(tmp_path / "run" / "last"), "retain": harsh.retain.model_dump()})
    _, found = drain(measuring(again))
    advised = advice_on_run(again, found)
    assert advised is not None
    assert advised.text == cure


def test_the_time_of_the_report_is_told_without_a_whole_answer(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = list[int]()

    def counting(model: Any, prompts: Any, sampling: Sampling, **options: Any) -> list[list[int]]:
        lengths.append(sampling.max_new_tokens)
        return complete(model, prompts, sampling, **options)

    monkeypatch.setattr(report_forgetting, "complete", counting)
    monkeypatch.setattr(replay, "SHORT_S", 0.0)
    monkeypatch.setattr(report_forgetting, "MOST_SHARE", 0.0)
    events = list(training(recipe(model, tmp_path / "run")))
    assert lengths == [1, 2, 2 + report_forgetting.TRIED_TOKENS]
    assert any(
        "report of forgetting is left out" in event.text for event in events if isinstance(event, Note)
    )
    assert not (tmp_path / "run" / "forgetting.json").exists()
    assert not list((tmp_path / "cache").rglob("*.jsonl"))
