"""The forecast of a run: types of the machine, the run's own choices, overrides that fit when pasted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune.recipe import Recipe, load_recipe
from glmtune.training.probe import Need
from glmtune.workflows import beside, fitting, imagining
from glmtune.workflows import forecast as forecasts
from glmtune.workflows.events import drain
from glmtune.workflows.execute import training
from glmtune.workflows.forecast import CARDS, Forecast, Machine, forecast
from glmtune.workflows.imagining import types_on
from glmtune.workflows.plan import Plan, planning
from models import tiny_folder

ADVERTS = Path(__file__).parents[3] / "examples" / "adverts.jsonl"
ENDLESS = Machine("endless", "cpu", 2**50, has_bf16=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16, "num_layers": 6}
    return tiny_folder(tmp_path_factory.mktemp("model"), dtype=torch.bfloat16, seq_length=512, **sizes)


@pytest.fixture(autouse=True)
def tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing counts but tensors: the rest differs from machine to machine."""
    monkeypatch.setattr(forecasts, "LOST_SHARE", 0)
    monkeypatch.setattr(forecasts, "GROWN", 0)
    monkeypatch.setattr(forecasts, "_process_bytes", lambda: 0)


def recipe(model: Path, output: Path, *words: str) -> Recipe:
    values = {
        "model": str(model),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 40, "holdout_rows": 4},
        "train": {"steps": 2, "batch_size": 4},
        "samples": {"prompts": []},
    }
    return load_recipe(values, words)


def plan_of(made: Recipe) -> Plan:
    return drain(planning(made))


def foretold(made: Recipe, machine: Machine = ENDLESS) -> Forecast:
    return forecast(plan_of(made), machine)


@pytest.fixture(scope="module")
def need(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Need:
    """The need of some run, for tests that ask for something else: it takes seconds to imagine."""
    plan = plan_of(recipe(model, tmp_path_factory.mktemp("run")))
    return imagining.imagine_run(plan, types_on(plan, device="cpu", has_bf16=False, free=2**50)).need


def held_by(told: Forecast) -> int:
    """The bytes that are there before the first step."""
    at_first = ("weights", "codes", "scales", "not quantised", "adapter", "prefix", "process")
    parts = told.phases[0].parts
    return sum(parts.get(name, 0) for name in at_first)


def test_a_card_computes_in_what_it_has(
    model: Path, tmp_path: Path, need: Need, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagining, "measure_need", lambda *_, **__: need)
    plan = drain(planning(recipe(model, tmp_path / "run")))
    types = [
        (told.recipe.dtype, told.recipe.train.precision)
        for told in (forecast(plan, CARDS[0].with_bf16(has_bf16)) for has_bf16 in (True, False))
    ]
    assert types == [("bf16", "bf16"), ("fp16", "fp16")]
    assert plan.recipe.dtype == "bf16"


def test_a_type_that_the_card_lacks_is_told_and_nothing_fits(model: Path, tmp_path: Path) -> None:
    told = foretold(recipe(model, tmp_path / "run", "dtype=bf16"), CARDS[-1].with_bf16(False))
    assert not told.fits
    assert told.phases == ()
    assert "this card has no bf16" in told.hint
    assert "dtype=fp16" in told.hint


@pytest.mark.parametrize("mib", [*(pytest.param(mib, marks=pytest.mark.slow) for mib in (100, 13)), 5.5])
def test_the_forecast_settles_what_the_run_does(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mib: float
) -> None:
    made = recipe(model, tmp_path / "run", "dtype=fp32")
    free = int(mib * 2**20)
    plan = plan_of(made)
    told = forecast(plan, replace(ENDLESS, free=held_by(forecast(plan, ENDLESS)) + free))
    monkeypatch.setattr(fitting, "free_memory", lambda device, mapped: free)
    monkeypatch.setattr(fitting, "with_losses", lambda need, *_, **__: need)
    drain(training(made))
    settled = load_recipe(tmp_path / "run" / "recipe.yaml").train
    assert (told.recipe.train.micro_batch_size, told.recipe.train.gradient_checkpointing) == (
        settled.micro_batch_size,
        settled.gradient_checkpointing,
    )


@pytest.mark.parametrize(
    ("words", "mib"),
    [
        (["train.micro_batch_size=4", "train.gradient_checkpointing=false"], 4),
        pytest.param(["method=full", "dtype=fp32"], 4, marks=pytest.mark.slow),
        pytest.param(["method=lora"], 1, marks=pytest.mark.slow),
    ],
)
def test_the_override_of_what_does_not_fit_fits(
    model: Path, tmp_path: Path, words: list[str], mib: float
) -> None:
    plan = plan_of(recipe(model, tmp_path / "run", *words))
    machine = replace(ENDLESS, free=held_by(forecast(plan, ENDLESS)) + int(mib * 2**20))
    told = forecast(plan, machine)
    assert not told.fits
    assert told.override in told.hint
    pasted = foretold(recipe(model, tmp_path / "run", *words, *told.override.split()), machine)
    assert pasted.fits
    assert not pasted.override


def test_int4_is_counted_twice_where_a_cpu_answers(
    model: Path, tmp_path: Path, need: Need, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagining, "measure_need", lambda *_, **__: need)
    told = [foretold(recipe(model, tmp_path / "run", f"quant={quant}")) for quant in ("int8", "int4", "nf4")]
    evaluations = [each.phases[1].parts for each in told]
    assert [parts.get("decoding", 0) > parts["codes"] for parts in evaluations] == [False, True, False]
    on_card = foretold(recipe(model, tmp_path / "run", "quant=int4"), CARDS[0])
    assert "decoding" not in on_card.phases[1].parts


def test_a_whole_model_is_evaluated_without_gradients(model: Path, tmp_path: Path) -> None:
    whole, part = (foretold(recipe(model, tmp_path / "run", f"method={name}")) for name in ("full", "lora"))
    assert whole.phases[0].parts["activations"] > part.phases[0].parts["activations"]
    assert whole.phases[1].parts["activations"] == part.phases[1].parts["activations"]


@pytest.mark.slow
def test_answers_in_int4_are_given_up_before_rows_are_cut(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "answering_bytes", lambda *_: 2**26)  # as of a large model
    words = ["quant=int4", "data.max_tokens=64", "data.overlong=cut_any", "samples.prompts=[hi]"]
    made = recipe(model, tmp_path / "run", *words)
    without = recipe(model, tmp_path / "run", *words[:-1], "retain.report=off")
    needed, least = (foretold(each).phases[0].num_bytes for each in (made, without))
    assert needed > least
    machine = replace(ENDLESS, free=(needed + least) // 2)
    told = foretold(made, machine)
    assert (told.fits, told.override) == (False, "samples.prompts=[] retain.report=off")
    assert foretold(recipe(model, tmp_path / "run", *words, *told.override.split()), machine).fits


def test_parts_are_those_of_the_weights(
    model: Path, tmp_path: Path, need: Need, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagining, "measure_need", lambda *_, **__: need)
    parts: dict[str, Any] = {
        quant: foretold(recipe(model, tmp_path / "run", *words)).phases[0].parts
        for quant, words in (("", []), ("int8", ["quant=int8"]), ("int4", ["quant=int4"]))
    }
    assert parts["int8"]["codes"] == 2 * parts["int4"]["codes"]
    assert parts["int8"]["codes"] + parts["int8"]["not quantised"] // 2 == parts[""]["weights"] // 2
    assert list(parts[""])[:4] == ["weights", "adapter", "gradients", "optimizer"]
