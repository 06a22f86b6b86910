"""Runs of the LoRA family: on every kind of model, resumed, on two processes; their ranks over time."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from closeness import distance
from glmtune.conversation import encode_messages
from glmtune.errors import CheckpointError, ConfigError
from glmtune.load import load_model, load_tokenizer
from glmtune.recipe import Recipe, load_recipe
from glmtune.reports.curves import candidates, lowest
from glmtune.run_files import read_json_lines
from glmtune.workflows.events import Note, Saved, drain
from glmtune.workflows.execute import training
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder
from proofs import edit_card

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
OWN = "[query_key_value,dense,dense_h_to_4h,dense_4h_to_h]"
THEIRS = "[q_proj,k_proj,v_proj,o_proj,gate_up_proj,down_proj]"
BASES: dict[str, tuple[Callable[[Path], Any], str, int]] = {
    "v1": (lambda folder: tiny_v1_folder(folder, lively=(12, 12)), OWN, 8),
    "v3": (tiny_folder, OWN, 8),
    "glm4": (lambda folder: tiny_folder(folder, "glm4"), OWN, 8),
    "transformers": (lambda folder: tiny_hf_folder(folder, "GLM-4-0414"), THEIRS, 12),
    "glm-tiny": (lambda _: "glm-tiny", OWN, 0),
}
METHODS = {
    "rslora": ("method=lora", "method.dropout=0", "method.r=4", "method.use_rslora=true"),
    "dora": ("method=lora", "method.dropout=0", "method.r=4", "method.use_dora=true"),
    "adalora": ("method=adalora", "method.dropout=0", "method.init_r=4", "method.target_r=2"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            made[name] = str(BASES[name][0](tmp_path_factory.mktemp("models") / name))
        return made[name]

    return folder


def recipe(model: str, output: Path, *words: str) -> Recipe:
    values = {
        "model": model,
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 16, "holdout_rows": 4},
        "train": {"steps": 10, "batch_size": 4, "micro_batch_size": 4, "lr": 3e-2, "eval_every": 5},
        "samples": {"prompts": []},
    }
    return load_recipe(values, words)


def ranks(folder: Path) -> dict[int, dict[str, int]]:
    return {line["step"]: line["ranks"] for line in read_json_lines(folder / "ranks.jsonl")}


def figures(folder: Path) -> list[tuple[float, ...]]:
    names = ("step", "loss", "grad_norm", "lr", "eval_loss")
    return [tuple(x[n] for n in names if n in x) for x in read_json_lines(folder / "metrics.jsonl")]


def logits(path: str | Path) -> torch.Tensor:
    ids = encode_messages(load_tokenizer(path), [{"role": "user", "content": "你好 hello"}])
    with torch.no_grad():
        result: torch.Tensor = load_model(path, dtype="fp32", device="cpu")(torch.tensor([ids])).logits
    return result


CASES = [("v3", "rslora"), *((base, method) for base in BASES for method in ("dora", "adalora"))]
FAST = (("v3", "rslora"), ("v3", "adalora"), ("v1", "dora"), ("glm4", "dora"), ("transformers", "adalora"))
"""Tried in every run; test_methods.py has each family with each method, test_recipes.py glm-tiny."""


@pytest.mark.parametrize(
    ("base", "method"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in CASES],
)
def test_loss_falls_on_every_kind_of_model_and_the_adapter_opens_again(
    folders: Callable[[str], str], tmp_path: Path, base: str, method: str
) -> None:
    words = (*METHODS[method], f"method.target_modules={BASES[base][1]}", "train.eval_every=10")
    result = drain(training(recipe(folders(base), tmp_path, *words)))
    assert result.metrics["eval_loss"] < result.metrics["first_eval_loss"] - 0.02
    assert distance(logits(tmp_path), logits(folders(base))) > 1e-4
    if method == "adalora":
        found = ranks(tmp_path)
        num_targets = BASES[base][2] or len(found[0])
        assert sum(found[0].values()) == 4 * num_targets
        assert (tmp_path / "ranks.png").stat().st_size > 1000
        assert list(found) == sorted(found)
        assert max(found) <= 8  # of 10; then they have settled
        assert sum(found[max(found)].values()) == 2 * num_targets
        stored = load_file(tmp_path / "last" / "adapter_model.safetensors")
        assert sum(len(x) for name, x in stored.items() if name.endswith("lora_E")) == 2 * num_targets


@pytest.mark.parametrize(
    ("method", "quant"),
    [
        ("adalora", "int8"),
        ("dora", "int4"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)  # each is in test_methods.py, without a run
            for case in (("adalora", "int4"), ("dora", "int8"), ("rslora", "int8"), ("rslora", "int4"))
        ),
    ],
)
def test_loss_falls_on_a_quantised_base(
    folders: Callable[[str], str], tmp_path: Path, quant: str, method: str
) -> None:
    result = drain(
        training(
            recipe(
                folders("v3"), tmp_path, *METHODS[method], f"quant={quant}", f"method.target_modules={OWN}"
            )
        )
    )
    assert result.metrics["eval_loss"] < result.metrics["first_eval_loss"] - 0.02


RESUMED = (*METHODS["adalora"], "train.eval_every=4", "method.dropout=0.1", f"method.target_modules={OWN}")


@pytest.fixture(scope="module")
def uninterrupted(folders: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = tmp_path_factory.mktemp("uninterrupted") / "whole"
    drain(training(recipe(folders("v3"), whole, *RESUMED)))
    return whole


@pytest.mark.parametrize("stop", [4, 8])
def test_a_resumed_adalora_run_equals_an_uninterrupted_one_bit_by_bit(
    folders: Callable[[str], str], uninterrupted: Path, tmp_path: Path, stop: int
) -> None:
    parts = recipe(folders("v3"), tmp_path / "parts", *RESUMED)
    interrupted = training(parts)
    while not (isinstance(event := next(interrupted), Saved) and event.path.name.endswith(str(stop))):
        pass
    next(interrupted)  # one more step, which the resumed run must forget
    interrupted.close()
    drain(training(parts, resume=True))
    assert figures(tmp_path / "parts") == figures(uninterrupted)
    assert ranks(tmp_path / "parts") == ranks(uninterrupted)
    first, second = (
        load_file(run / "last" / "adapter_model.safetensors") for run in (uninterrupted, tmp_path / "parts")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_adalora_run_is_not_resumed_from_a_state_of_other_weights_than_its_adapters(
    folders: Callable[[str], str], tmp_path: Path
) -> None:
    settings = recipe(folders("v3"), tmp_path, *METHODS["adalora"], f"method.target_modules={OWN}")
    drain(training(settings))
    path = tmp_path / "last" / "state.pt"
    state = torch.load(path, weights_only=True)
    next(iter(state["pruning"]["weights"].values())).mul_(1.1)
    torch.save(state, path)
    edit_card(path.parent, lambda card: card.pop("files"))  # an earlier version's
    with pytest.raises(CheckpointError, match="not the weights that were saved: their hash is"):
        drain(training(settings, resume=True))


@pytest.mark.slow
def test_two_processes_prune_as_one_does(folders: Callable[[str], str], tmp_path: Path) -> None:
    words = (*METHODS["adalora"], "train.batch_size=5", "train.micro_batch_size=2")
    drain(training(recipe(folders("v3"), tmp_path / "one", *words)))
    file = tmp_path / "two.yaml"
    settings = recipe(folders("v3"), tmp_path / "two", *words).model_dump(mode="json")
    file.write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "glmtune", "train", str(file)], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ranks: 4 -> 2 on average" in done.stdout
    assert ranks(tmp_path / "two") == ranks(tmp_path / "one")
    for one, two in zip(figures(tmp_path / "one"), figures(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


def test_the_best_checkpoint_has_the_ranks_that_were_asked_for(
    folders: Callable[[str], str], tmp_path: Path
) -> None:
    words = (
        *METHODS["adalora"],
        "method.final_steps=4",
        "train.lr=0",
        "train.eval_every=2",
        "train.patience=1",
    )
    events = list(training(recipe(folders("v3"), tmp_path, *words)))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "stopped early: no better evaluation loss in 1 evaluations" in notes
    assert "ranks: 4 -> 2 on average (min " in "\n".join(notes)
    assert (tmp_path / "best").resolve().name == "step-000006"
    assert (tmp_path / "last").resolve().name == "step-000008"
    assert lowest(candidates(read_json_lines(tmp_path / "metrics.jsonl"))) == 6  # the star of loss.png


def test_a_schedule_that_does_not_fit_the_run_leaves_no_trace(
    folders: Callable[[str], str], tmp_path: Path
) -> None:
    words = (*METHODS["adalora"], "method.warmup_steps=10")
    with pytest.raises(ConfigError, match=r"method.warmup_steps 10 and method.final_steps 2 leave none"):
        drain(training(recipe(folders("v3"), tmp_path / "run", *words)))
    assert not (tmp_path / "run").exists()


def test_a_schedule_that_does_not_fit_is_refused_before_the_model_is_opened(
    folders: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(
        sys.modules["glmtune.workflows.assemble"], "load_location", lambda *_, **__: opened.append(1)
    )
    words = (*METHODS["adalora"], "method.warmup_steps=9")
    with pytest.raises(ConfigError, match="leave none of the run's 10 steps to prune in"):
        drain(training(recipe(folders("v3"), tmp_path / "run", *words)))
    assert not opened


def test_a_run_that_comes_to_no_good_ends_with_a_warning(
    folders: Callable[[str], str], tmp_path: Path
) -> None:
    words = ("train.lr=100", "train.steps=1", "method=lora")
    events: list[Any] = []
    drain(training(recipe(folders("v3"), tmp_path / "run", *words)), events.append)
    last = events[-1]
    assert isinstance(last, Note)
    assert last.is_warning
    assert last.text.startswith("nothing was gained: ")
