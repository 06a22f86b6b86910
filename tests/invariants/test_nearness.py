"""Laws of `retain.kl`: the term and its gradient by hand, split, resumed, recomputed, and what it is for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from closeness import assert_close
from forks import run_ranks
from glmtune.adapters.off import without_adapter
from glmtune.data.batches import collate
from glmtune.errors import ConfigError
from glmtune.methods import apply_method
from glmtune.models.recomputing import recompute
from glmtune.objectives import OBJECTIVES, SftObjective, cross_entropy
from glmtune.objectives.sft import Nearness
from glmtune.objectives.teacher import LIKELIEST, record_likeliest
from glmtune.recipe import Recipe, load_recipe
from glmtune.run_files import read_json_lines
from glmtune.training.allocations import TensorMeter
from glmtune.training.processes import Processes
from glmtune.workflows.events import drain
from glmtune.workflows.execute import training
from models import lively_model, random_rows, tiny_folder
from resumed import assert_same_weights, train_in_parts
from tuned import settings_of

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
WEIGHT = 0.7
METHODS = {
    "lora": ["method=lora"],
    "full": ["method=full", "train.lr=1e-3"],
    "freeze": ["method=freeze", "method.num_layers=1", "train.lr=1e-3"],
    "ptuning": ["method=ptuning", "method.num_prefix_tokens=4"],
    "adalora": ["method=adalora", "method.init_r=4", "method.target_r=2"],
    "dora": ["method=lora", "method.use_dora=true"],
    "qlora": ["method=lora", "quant=nf4"],
}


def full_logits(model: Any, row: Any) -> Tensor:
    """Logits (L, V) before the learned tokens of a row."""
    is_learned = torch.from_numpy(row.labels[1:] != -100)
    logits: Tensor = model(input_ids=torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0, :-1]
    return logits[is_learned]


def parted(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Log probabilities (L, K + 1) of ids and of the rest."""
    rest = log_probs.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat((log_probs.gather(1, ids), rest), 1)


def moved(name: str) -> Any:
    tuned = apply_method(lively_model(), settings_of({**_SETTINGS[name]})).double()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return tuned.train()


_SETTINGS = {
    "lora": {"name": "lora", "r": 4, "dropout": 0},
    "dora": {"name": "lora", "use_dora": True, "dropout": 0},
    "ptuning": {"name": "ptuning", "num_prefix_tokens": 3, "dropout": 0},
    "full": {"name": "full"},
}


def test_a_base_that_fails_leaves_the_model_training(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = moved("lora")
    objective = SftObjective(tuned)
    objective.nearness = Nearness(WEIGHT, 1, lambda: without_adapter(tuned))

    def out_of_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("glmtune.objectives.sft.likeliest", out_of_memory)
    with pytest.raises(MemoryError):
        objective.loss(collate(random_rows(2), 0))
    assert tuned.training


@pytest.mark.parametrize("name", _SETTINGS)
def test_loss_and_gradient_are_the_cross_entropy_and_the_weighted_divergence(name: str) -> None:
    rows = random_rows(4)
    rows[3] = replace(rows[3], source=1)  # an answer of the base, that is not kept near it
    base = lively_model().double()
    tuned = moved(name)
    recorded = record_likeliest(base, rows, processes=Processes(), pad_id=0)
    objective = SftObjective(tuned)
    if name == "full":
        objective.nearness = Nearness(WEIGHT, 1)
        batch = collate(recorded, 0)
    else:
        objective.nearness = Nearness(WEIGHT, 1, lambda: without_adapter(tuned))
        batch = collate([*rows[:3], recorded[3]], 0)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    loss = objective.loss(batch)
    gradients = torch.autograd.grad(loss, trained)

    losses, divergences, due = [], [], torch.zeros((), dtype=torch.float64)
    for row, known in zip(rows, recorded, strict=True):
        with torch.no_grad():
            p = full_logits(base, row).log_softmax(1)
        q = full_logits(tuned.train(), row).log_softmax(1)
        labels = torch.from_numpy(row.labels[1:][row.labels[1:] != -100].astype(np.int64))
        ids = torch.from_numpy(known.target_ids.astype(np.int64))[-len(labels) :]  # type: ignore[union-attr]
        p_parts, q_parts = parted(p, ids), parted(q, ids)
        from_base = -(p_parts.exp() * q_parts).sum(1)
        if row.source:
            losses.append(from_base)
            due = due + from_base.sum()
            continue
        losses.append(-q.gather(1, labels[:, None])[:, 0])
        divergences.append((p_parts.exp() * (p_parts - q_parts)).sum(1))
        due = due + losses[-1].sum() + WEIGHT * divergences[-1].sum()
    expected = torch.autograd.grad(due, trained)
    assert objective.losses is not None
    assert objective.divergences is not None
    assert_close(objective.losses, torch.cat(losses).detach(), share=1e-6)  # recorded in fp32
    assert_close(objective.divergences, torch.cat(divergences).detach(), share=1e-5)
    assert_close([*gradients], [*expected], share=1e-5)
    assert float(objective.divergences.sum()) > 0.01


def test_only_training_keeps_the_model_near() -> None:
    tuned, rows = moved("lora"), random_rows(3)
    objective = SftObjective(tuned)
    plain = objective.eval().loss(collate(rows, 0))
    objective.nearness = Nearness(WEIGHT, 1, lambda: without_adapter(tuned))
    assert torch.equal(objective.loss(collate(rows, 0)), plain)
    assert objective.divergences is None


def test_no_row_to_keep_near_is_no_divergence() -> None:
    tuned = moved("lora")
    objective = SftObjective(tuned)
    objective.nearness = Nearness(WEIGHT, 1, lambda: without_adapter(tuned))
    others = [replace(row, source=1) for row in random_rows(3)]
    loss = objective.loss(collate(others, 0))
    assert objective.divergences is not None
    assert objective.divergences.shape == (0,)
    objective.nearness = None
    assert_close(loss, objective.loss(collate(others, 0)), share=1e-12)


def test_recomputed_layers_change_nothing() -> None:
    tuned, rows = moved("lora"), random_rows(3)
    objective, found = SftObjective(tuned), []
    objective.nearness = Nearness(WEIGHT, 1, lambda: without_adapter(tuned))
    for number in (0, 2):
        recompute(tuned, number)
        tuned.zero_grad()
        with objective.passes():
            objective.loss(collate(rows, 0)).backward()
        found.append([p.grad for p in tuned.parameters() if p.requires_grad])
    assert_close(found[1], found[0])


def test_the_base_is_asked_before_anything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a step's highest memory stays what it was, but for few numbers a token."""
    monkeypatch.setattr(cross_entropy, "LISTED_NUMBERS", 2**12)
    tuned = apply_method(lively_model(hidden_size=64, num_layers=4), settings_of(_SETTINGS["lora"])).train()
    rows, peaks = random_rows(12, longest=60), []
    objective = SftObjective(tuned)
    for nearness in (None, Nearness(WEIGHT, 1, lambda: without_adapter(tuned))):
        objective.nearness = nearness
        with TensorMeter([*tuned.parameters()]) as meter, objective.passes():
            objective.loss(collate(rows, 0)).backward()
        peaks.append(meter.peak)
    num_learned = objective.weight(collate(rows, 0))
    assert peaks[1] <= peaks[0] + num_learned * LIKELIEST * 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}
    return tiny_folder(tmp_path_factory.mktemp("model"), **sizes)


def recipe(model: Path, output: Path, *words: str) -> Recipe:
    values = {
        "model": str(model),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 12, "holdout_rows": 2},
        "train": {"steps": 4, "batch_size": 8, "lr": 1e-2, "eval_every": 2, "save_every": 2},
        "samples": {"prompts": []},
        "retain": {"ratio": 0, "report": "off", "kl": WEIGHT},
    }
    return load_recipe(values, words)


def lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_json_lines(run / "metrics.jsonl") if "loss" in line]


SLOW = [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("lora", "full"))) for name in METHODS]


@pytest.mark.parametrize("name", SLOW)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(model: Path, tmp_path: Path, name: str) -> None:
    words = METHODS[name]
    whole, parts = (recipe(model, tmp_path / run, *words) for run in ("whole", "parts"))
    drain(training(whole))
    train_in_parts(parts, stop=2)
    same = ("step", "loss", "kl", "grad_norm")
    first, second = (
        [{key: line[key] for key in same} for line in lines(tmp_path / run)] for run in ("whole", "parts")
    )
    assert first == second
    assert first[0]["kl"] == pytest.approx(0, abs=1e-6) or name == "ptuning"  # a prefix begins at random
    assert first[-1]["kl"] > 1e-4 or name not in ("lora", "full")  # the others have hardly moved
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_micro_batches_of_any_size_are_one_step(model: Path, tmp_path: Path) -> None:
    for size in (1, 8):
        words = (f"train.micro_batch_size={size}", "method.dropout=0")
        drain(training(recipe(model, tmp_path / str(size), *words)))
    for one, eight in zip(lines(tmp_path / "1"), lines(tmp_path / "8"), strict=True):
        for key in ("loss", "grad_norm"):
            assert eight[key] == pytest.approx(one[key], rel=1e-5)
        assert eight["kl"] == pytest.approx(one["kl"], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_two_processes_equal_one(model: Path, tmp_path: Path) -> None:
    for method in ("lora", "full"):
        for number in (1, 2):
            words = (
                f"model={model}", f"output={tmp_path / method / str(number)}", f"data.train={ADVERTS}",
                "data.max_rows=12", "data.max_tokens=400", "data.holdout_rows=2",
                "train.steps=4", "train.batch_size=8",
                "train.lr=1e-3", "samples.prompts=[]", "retain.ratio=0", "retain.report=off",
                f"retain.kl={WEIGHT}",
                f"method={method}", *(["method.dropout=0"] if method == "lora" else []),
            )  # fmt: skip
            done = run_ranks(number, "-m", "glmtune", "train", *words, encoding="utf-8")
            assert done.returncode == 0, done.stderr
        for one, two in zip(lines(tmp_path / method / "1"), lines(tmp_path / method / "2"), strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert two["kl"] == pytest.approx(one["kl"], rel=1e-3, abs=1e-6)


def test_the_loss_that_is_told_is_the_task_s_and_a_large_weight_keeps_the_model_at_its_base(
    model: Path, tmp_path: Path
) -> None:
    for weight in ("0", "0.001", "1000"):
        words = ("method.dropout=0", "train.steps=8", f"retain.kl={weight}")
        drain(training(recipe(model, tmp_path / weight, *words)))
    without, weak, strong = (lines(tmp_path / weight) for weight in ("0", "0.001", "1000"))
    assert "kl" not in without[0]
    assert weak[0]["loss"] == pytest.approx(without[0]["loss"], rel=1e-6)
    assert strong[0]["loss"] == pytest.approx(without[0]["loss"], rel=1e-6)
    assert strong[-1]["kl"] < weak[-1]["kl"] / 20
    assert weak[-1]["loss"] < strong[-1]["loss"]


def test_an_objective_of_its_own_has_no_such_term(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(SftObjective):
        def loss(self, batch: Any) -> Tensor:
            return super().loss(batch)

    monkeypatch.setitem(OBJECTIVES, "sft", lambda model, _: Other(model))
    with pytest.raises(ConfigError, match=r"retain\.kl"):
        drain(training(recipe(model, tmp_path / "run")))
    assert not (tmp_path / "run").exists()
