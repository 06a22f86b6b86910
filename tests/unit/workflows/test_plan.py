"""What a run's settings are settled to before anything is loaded."""

from pathlib import Path

import pytest
import torch

from glmtune.data.batches import Steps
from glmtune.errors import ConfigError
from glmtune.methods import steps_warning
from glmtune.models.dtype import Choice, choose_precision
from glmtune.processor import has_bf16 as processor_has_bf16
from glmtune.recipe import AdaLora, Lora, Method, Train, load_recipe
from glmtune.recipe.method import MethodSettings
from glmtune.training.memory import resident_memory
from glmtune.workflows.events import Note, drain
from glmtune.workflows.plan import (
    FEW_STEPS,
    count_steps,
    fp16_line,
    plan_line,
    plan_warning,
    planning,
    short_warning,
)
from glmtune.workflows.rates import is_rate_high, lower_rate, rate_line, with_default_rate
from glmtune.workflows.rows import data_hash
from models import huge_folder, random_rows

ADVERTS = Path(__file__).parents[3] / "examples" / "adverts.jsonl"
CARD = torch.device("cuda")
RATES = {"full": 5e-5, "freeze": 1e-4, "lora": 1e-4, "adalora": 5e-4, "ptuning": 2e-2}


@pytest.fixture(params=[True, False], ids=["with bf16", "without bf16"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A card, as torch tells of it: an old one imitates bf16 but does not have it."""
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or request.param,
    )
    return bool(request.param)


@pytest.mark.parametrize("held", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("device", [CARD, torch.device("cpu")])
def test_arithmetic_is_in_the_type_that_the_base_computes_in(
    held: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_precision("auto", Choice(held, torch.float32), device) == "fp32"
    assert choose_precision("auto", Choice(held, torch.bfloat16), device) == "bf16"
    assert choose_precision("fp32", Choice(held, held), device) == "fp32"


def test_bf16_arithmetic_asked_of_a_card_without_it_is_refused_by_name(has_bf16: bool) -> None:
    base = Choice(torch.float16, torch.float16)
    if has_bf16:
        assert choose_precision("bf16", base, CARD) == "bf16"
        return
    with pytest.raises(ConfigError, match=r"^train\.precision: bf16, but this card has no bf16") as caught:
        choose_precision("bf16", base, CARD)
    assert "train.precision=fp16" in caught.value.hint


def test_training_in_fp16_for_want_of_bf16_is_said_in_a_line(has_bf16: bool) -> None:
    line = fp16_line("fp16", CARD)
    assert (line is None) == has_bf16
    assert has_bf16 or "fp16 with loss scaling" in str(line)
    assert fp16_line("fp32", CARD) is None


@pytest.mark.parametrize("cap", ["AVX2", "DEFAULT"])
def test_a_cpu_computes_in_bf16_where_that_is_asked_of_it(cap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert choose_precision("bf16", Choice(torch.float32, torch.float32), torch.device("cpu")) == "bf16"


@pytest.mark.parametrize(("processes", "said"), [(1, "1 process on cpu"), (2, "2 processes on cpu")])
def test_the_plan_gives_updates_samples_and_epochs_of_all_processes(processes: int, said: str) -> None:
    """P-Tuning's run on two cards: about 64 epochs, though its script speaks of 2000 steps only."""
    steps = Steps(random_rows(1000), batch_size=32, micro_batch_size=1, seed=1, num_processes=processes)
    assert steps.per_epoch == 32
    assert plan_line(steps, 2000, torch.device("cpu"), "fp32") == (
        "plan: 2000 steps of up to 32 rows, 62512 samples in all, 62.50 epochs of 1000 examples; "
        f"{said}, fp32"
    )


@pytest.mark.parametrize("name", RATES)
def test_an_empty_rate_is_the_methods_own_with_its_source(name: str) -> None:
    recipe = load_recipe({"model": "m", "method": name})
    assert recipe.train.lr is None
    settled = with_default_rate(recipe)
    assert settled.train.lr == RATES[name]
    source = recipe.method.lr_source.partition(";")[0]
    assert (
        rate_line(settled.method, RATES[name])
        == f"learning rate: {RATES[name]:g}, the default of {name} ({source})"
    )


def test_a_rate_that_is_set_stays_and_the_default_is_said() -> None:
    line = rate_line(Lora(), 0.003)
    assert line.startswith("learning rate: 0.003; 0.0001 is the default of lora (")
    assert with_default_rate(load_recipe({"model": "m", "train": {"lr": 0}})).train.lr == 0


@pytest.mark.parametrize(("lr", "lower"), [(1e30, 1e-4), (1e-3, 1e-4), (1e-4, 1e-5), (1e-5, 1e-6)])
def test_the_rate_to_fall_back_to_is_the_methods_or_a_tenth(lr: float, lower: float) -> None:
    assert lower_rate(Lora(), lr) == pytest.approx(lower)
    assert is_rate_high(Lora(), lr) == (lr > 1e-4)


def test_every_method_has_a_rate_of_its_own() -> None:
    members = Method.__origin__.__args__  # type: ignore[attr-defined]
    assert {member.model_fields["name"].default for member in members} == RATES.keys()
    assert all(issubclass(member, MethodSettings) for member in members)


@pytest.mark.parametrize(("num_steps", "said"), [(26, "19 of 26 steps"), (3, "3 of 3 steps"), (27, None)])
def test_adalora_with_few_steps_to_prune_in_is_warned_of(num_steps: int, said: str | None) -> None:
    """Its schedule leaves a tenth of the steps before and a fifth after the pruning."""
    warning = steps_warning(AdaLora(), num_steps)
    assert (warning is None) == (said is None)
    if said:
        assert f"adalora has {said} to prune in" in str(warning)
        assert "method=lora" in str(warning)
    assert steps_warning(Lora(), num_steps) is None


SHORT: list[tuple[int, dict[str, float], int | None]] = [
    (6, {}, 20),
    (33, {"epochs": 2}, 7),
    (304, {}, 2),
    (305, {}, None),
    (6, {"epochs": 20}, None),
    (6, {"steps": 1}, None),  # asked for
]


@pytest.mark.parametrize(("rows", "settings", "epochs"), SHORT)
def test_few_rows_that_make_few_steps_are_warned_of_and_the_hint_makes_enough(
    rows: int, settings: dict[str, float], epochs: int | None
) -> None:
    steps = Steps(random_rows(rows), batch_size=16, micro_batch_size=1, seed=1)
    train = Train.model_validate(settings)
    warning = short_warning(train, steps, count_steps(train, steps))
    assert (warning is None) == (epochs is None)
    if epochs:
        assert f"; set train.epochs={epochs} or more" in str(warning)
        longer = Train(epochs=epochs)
        assert short_warning(longer, steps, count_steps(longer, steps)) is None


@pytest.mark.parametrize("name", RATES)
def test_the_epochs_of_the_hint_put_no_chat_at_risk(name: str) -> None:
    recipe = load_recipe({"model": "m", "method": name})
    steps = Steps(random_rows(6), batch_size=16, micro_batch_size=1, seed=1)
    assert plan_warning(recipe.method, recipe.method.default_lr, steps, FEW_STEPS) is None


def test_a_schedule_that_does_not_fit_is_refused_in_the_plan() -> None:
    with pytest.raises(ConfigError, match=r"leave none of the run's 10 steps to prune in"):
        steps_warning(AdaLora(warmup_steps=10), 10)


def test_a_plan_reads_no_weights_and_writes_nothing(tmp_path: Path) -> None:
    model, (before, _) = huge_folder(tmp_path / "model"), resident_memory()
    values = {"model": str(model), "output": tmp_path / "run", "dtype": "bf16", "device": "cpu"}
    rows = {"train": ADVERTS, "max_rows": 20, "max_tokens": 400, "holdout_rows": 4}
    notes: list[Note] = []
    recipe = load_recipe({**values, "data": rows, "train": {"epochs": 3, "batch_size": 8}})
    plan = drain(planning(recipe), notes.append)
    precision = "bf16" if processor_has_bf16(torch.device("cpu")) else "fp32"
    assert (plan.num_steps, plan.processes.precision, plan.lr) == (9, precision, 1e-4)
    assert plan.notes == tuple(notes)
    assert plan.row_hashes == {"train_sha256": data_hash(ADVERTS)}
    assert notes[0].text.startswith(f"{ADVERTS}: the first 20 of 236 rows (data.max_rows) to train on")
    assert next(plan.summary()).text.startswith("plan: 9 steps of up to 8 rows, 60 samples in all")
    assert resident_memory()[0] - before < 2 * 2**30
    assert not (tmp_path / "run").exists()
