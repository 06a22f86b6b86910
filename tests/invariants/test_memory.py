"""A run settles what its memory allows before step 1: nothing else changes by it, and what it settles is kept."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forks import run_ranks
from glmtune.errors import ConfigError
from glmtune.methods import apply_method
from glmtune.objectives import SftObjective
from glmtune.recipe import Lora, Recipe, load_recipe
from glmtune.run_files import read_json_lines
from glmtune.training.probe import untouched
from glmtune.workflows import fitting
from glmtune.workflows.events import Note, Saved, drain
from glmtune.workflows.execute import training
from models import tiny_folder, tiny_model

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
METHODS = {
    "lora": ["method=lora"],
    "full": ["method=full"],
    "freeze": ["method=freeze", "method.num_layers=1"],
    "ptuning": ["method=ptuning", "method.num_prefix_tokens=4"],
    "adalora": ["method=adalora", "method.init_r=4", "method.target_r=2"],
}


def recipe(model: Path, output: Path, *words: str) -> Recipe:
    values = {
        "model": str(model),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 40, "holdout_rows": 4},
        "train": {"steps": 4, "batch_size": 4, "lr": 1e-2, "eval_every": 2},
        "samples": {"prompts": []},
    }
    return load_recipe(values, words)


def figures(run: Path) -> list[tuple[float, ...]]:
    names = ("step", "loss", "grad_norm", "lr", "eval_loss")
    return [
        tuple(line[name] for name in names if name in line) for line in read_json_lines(run / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16, "num_layers": 4}
    return tiny_folder(tmp_path_factory.mktemp("model"), **sizes)


def settled(run: Path) -> tuple[Any, Any]:
    train = load_recipe(run / "recipe.yaml").train
    return train.micro_batch_size, train.gradient_checkpointing


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "last").resolve().glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def notes_of(made: Recipe) -> list[str]:
    return [event.text for event in training(made) if isinstance(event, Note)]


def free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda device: num_bytes)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_measures_its_memory_equals_one_that_does_not_bit_by_bit(
    model: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout on: the random numbers are those of a run that has made no passes before step 1."""
    words = METHODS[method]
    notes = notes_of(recipe(model, tmp_path / "auto", *words))
    assert sum(text.startswith("memory: longest micro-batch ") for text in notes) == 1
    assert settled(tmp_path / "auto") == ("8192 tokens", False)
    explicit = ["train.micro_batch_size=4", "train.gradient_checkpointing=false"]
    monkeypatch.setattr("glmtune.workflows.assemble.fit_into_memory", _not_measured)
    drain(training(recipe(model, tmp_path / "set", *words, *explicit)))
    assert figures(tmp_path / "auto") == figures(tmp_path / "set")
    first, second = weights_of(tmp_path / "auto"), weights_of(tmp_path / "set")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def _not_measured(plan: Any, objective: Any) -> Any:
    return plan
    yield


def test_the_passes_before_step_1_leave_no_gradient_random_number_or_mode() -> None:
    objective = SftObjective(apply_method(tiny_model(), Lora()))
    objective.model.eval()
    state = torch.get_rng_state()
    with untouched(objective, torch.device("cpu")):
        assert objective.training
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not objective.model.training
    assert all(p.grad is None for p in objective.parameters())


def test_what_a_run_has_settled_is_recorded_and_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded for the same run again, and for its resumption, whatever is free by then."""
    made = recipe(model, tmp_path / "run")
    free(monkeypatch, 9 * 2**20)
    interrupted = training(made)
    while not isinstance(next(interrupted), Saved):
        pass
    interrupted.close()
    size, recomputed = settled(tmp_path / "run")
    assert size != "auto"
    assert recomputed not in (False, "auto")
    free(monkeypatch, 2**40)
    notes = [event.text for event in training(made, resume=True) if isinstance(event, Note)]
    assert not [text for text in notes if text.startswith("memory: ")]
    assert settled(tmp_path / "run") == (size, recomputed)
    again = load_recipe(tmp_path / "run" / "recipe.yaml", [f"output={tmp_path / 'again'}"])
    drain(training(again))
    assert settled(tmp_path / "again") == (size, recomputed)
    assert figures(tmp_path / "again") == figures(tmp_path / "run")


def test_less_memory_means_more_recomputation_and_the_same_losses(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["method.dropout=0", "train.steps=2"]
    found = {}
    for mib in (200, 9, 7):
        free(monkeypatch, mib * 2**20)
        drain(training(recipe(model, tmp_path / str(mib), *words)))
        found[mib] = settled(tmp_path / str(mib))
    print(found)
    losses = [[line[1] for line in figures(tmp_path / str(mib)) if len(line) > 2] for mib in found]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
