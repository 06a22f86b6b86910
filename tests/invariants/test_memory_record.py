"""memory.json has what a run's tensors take, to the byte, and goes on with a run that is resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from glmtune.errors import CheckpointError
from glmtune.recipe import Recipe, load_recipe
from glmtune.run_files import read_json_lines
from glmtune.workflows.events import drain
from glmtune.workflows.execute import training
from models import tiny_folder

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
KINDS = {
    "lora": ["method=lora"],
    "lora on int4": ["method=lora", "quant=int4"],
    "lora on nf4": ["method=lora", "quant=nf4"],
    "ptuning": ["method=ptuning", "method.num_prefix_tokens=4"],
    "freeze": ["method=freeze", "method.num_layers=1"],
    "full": ["method=full"],
}
PHASES = ["loading", "probe", "evaluation", "pictures", "step", "saving"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}
    return tiny_folder(tmp_path_factory.mktemp("model"), **sizes)


def recipe(model: Path, output: Path, *words: str) -> Recipe:
    values = {
        "model": str(model),
        "output": output,
        "device": "cpu",
        "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 12, "holdout_rows": 4},
        "train": {"steps": 2, "batch_size": 2, "lr": 1e-3, "eval_every": 1},
        "samples": {"prompts": []},
    }
    return load_recipe(values, words)


def record(run: Path) -> Any:
    return json.loads((run / "memory.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_what_the_tensors_take(model: Path, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    drain(training(recipe(model, run, *KINDS[kind])))
    written = record(run)
    measured, predicted = written["measured"], written["predicted"]
    saved = [file for file in (run / "last").resolve().iterdir() if file.suffix == ".safetensors"]
    trained = sum(tensor.nbytes for file in saved for tensor in load_file(file).values())
    is_added = kind.startswith(("lora", "ptuning"))
    assert measured.get("adapter", measured.get("prefix", 0)) == (trained if is_added else 0)
    assert measured["gradients"] == trained
    assert 2 * trained < measured["optimizer"] < 2 * trained + 1000  # two means; a number of steps each
    assert ("codes" in measured, "scales" in measured, "weights" in measured) == (
        (True, True, False) if " on " in kind else (False, False, True)
    )
    for parts in (measured, predicted):
        assert parts["bytes"] == sum(size for name, size in parts.items() if name != "bytes")
    assert measured["bytes"] <= written["limit"]
    assert {**measured, "optimizer": 0, "activations": 0, "bytes": 0} == (
        {**predicted, "optimizer": 0, "activations": 0, "bytes": 0}
    )
    assert list(written["phases"]) == PHASES
    steps = [line for line in read_json_lines(run / "metrics.jsonl") if "loss" in line]
    assert all(0 < line["memory_gib"] <= line["peak_memory_gib"] for line in steps)
    assert (run / "memory.png").is_file()


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    drain(training(recipe(model, run, "train.save_every=1", "train.keep_checkpoints=2")))
    return run


@pytest.mark.parametrize(
    ("figures", "is_kept"),
    [
        ({"resident": 2**50, "anonymous": 2**49}, True),
        ({"reserved": 2**50, "allocated": 2**49}, False),  # a card's
    ],
)
def test_a_resumed_run_keeps_what_was_higher(finished: Path, figures: dict[str, int], is_kept: bool) -> None:
    earlier = record(finished)
    earlier["phases"]["step"] = figures
    (finished / "memory.json").write_text(json.dumps(earlier), encoding="utf-8")
    drain(training(load_recipe(finished / "recipe.yaml", [f"output={finished}"]), resume=True))
    assert (record(finished)["phases"].get("step") == figures) is is_kept


def test_a_run_of_an_earlier_version_gets_the_file_when_it_goes_on(finished: Path) -> None:
    (finished / "memory.json").unlink()
    drain(training(load_recipe(finished / "recipe.yaml", [f"output={finished}"]), resume=True))
    assert record(finished)["measured"]["adapter"] > 0


def test_a_damaged_file_is_named(finished: Path) -> None:
    (finished / "memory.json").write_text('{"measured": 3}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"memory\.json"):
        drain(training(load_recipe(finished / "recipe.yaml", [f"output={finished}"]), resume=True))
    (finished / "memory.json").unlink()
