"""What cannot fit is refused before its weights are read, with settings that, pasted, fit."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from forks import run_ranks
from glmtune.errors import ConfigError
from glmtune.files import read_json
from glmtune.recipe import Recipe, load_recipe
from glmtune.workflows import assemble, room
from glmtune.workflows.events import Note, drain
from glmtune.workflows.execute import training
from glmtune.workflows.forecast import Machine, forecast
from glmtune.workflows.plan import planning
from limits import TOO_MUCH, limited_training
from models import tiny_folder

ROWS = [{"prompt": "说", "response": "今天天气很好，我们一起去公园散步。" * 30}] * 12
GIVEN = {"micro_batch_size": 4, "gradient_checkpointing": False}
MIB = 2**20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16, "num_layers": 4}
    return tiny_folder(tmp_path_factory.mktemp("model"), seq_length=2048, **sizes)


def recipe(model: Path, folder: Path, *words: str) -> Recipe:
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    values = {
        "model": str(model),
        "output": folder / "run",
        "data": {"train": folder / "rows.json", "holdout_rows": 1},
        "train": {"steps": 1, "batch_size": 4, "lr": 1e-2, **GIVEN},
        "samples": {"prompts": []},
    }
    return load_recipe(values, words)


@pytest.fixture
def _short(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with less than the longest micro-batch takes, and more than the shortest."""
    monkeypatch.setattr("glmtune.workflows.forecast.SMALL", 0)
    monkeypatch.setattr(room, "tighten_heap", lambda: None)  # it would last for all tests
    plan = drain(planning(recipe(model, tmp_path)))
    needed = forecast(plan, Machine("large", "cpu", 2**40, has_bf16=False)).phases[0].num_bytes
    machine = Machine("this machine", "cpu", needed - 2 * MIB, has_bf16=False)
    monkeypatch.setattr(room, "this_machine", lambda: machine)


@pytest.mark.usefixtures("_short")
def test_what_cannot_fit_is_refused_before_loading_and_its_hint_fits(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="this run would need") as refused:
        patch.setattr(assemble, "load_location", load)
        drain(training(recipe(model, tmp_path)))
    assert not (tmp_path / "run").exists()
    words = refused.value.hint.removeprefix("these settings would fit: ").split()
    events: list[Any] = []
    drain(training(recipe(model, tmp_path, *words)), events.append)
    said = [event.text for event in events if isinstance(event, Note)]
    assert sum(text.startswith("forecast: ") for text in said) == 2
    recorded = read_json(tmp_path / "run" / "env.json")["memory"]
    assert recorded["fits"]
    predicted = read_json(tmp_path / "run" / "memory.json")["predicted"]
    assert predicted.pop("bytes") == recorded["phases"]["training"]["bytes"]
    assert predicted == recorded["phases"]["training"]["parts"]


@pytest.mark.usefixtures("_short")
def test_a_run_that_is_forced_is_warned_and_loaded(model: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    drain(training(recipe(model, tmp_path), force=True), events.append)
    warned = [event.text for event in events if isinstance(event, Note) and event.is_warning]
    assert any(text.startswith("memory: this run would need") for text in warned)
    assert not read_json(tmp_path / "run" / "env.json")["memory"]["fits"]


def test_a_small_model_is_measured_not_forecast(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "forecast", None)
    drain(training(recipe(model, tmp_path)))
    assert read_json(tmp_path / "run" / "env.json")["memory"] is None
    assert read_json(tmp_path / "run" / "memory.json")["predicted"]["bytes"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not psutil.LINUX, reason="limits addresses")
@pytest.mark.parametrize("ranks", [1, 2])
def test_under_a_real_limit_a_run_is_refused_before_loading_and_its_hint_runs(
    tmp_path: Path, ranks: int
) -> None:
    train = limited_training(tmp_path, rows=5, is_foretold=True)
    refused = run_ranks(ranks, *train, *TOO_MUCH, encoding="utf-8")
    assert refused.returncode == 2, refused.stderr
    error, hint = refused.stderr.splitlines()[-2:]
    assert error.startswith("error: memory: this run would need")
    assert "trainable params" not in refused.stdout
    found = hint.removeprefix("hint: these settings would fit: ").split()
    done = run_ranks(ranks, *train, *found, encoding="utf-8")
    assert done.returncode == 0, done.stderr
