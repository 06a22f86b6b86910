"""A run settles before step 1 what its memory allows: nothing else changes, and what is settled is kept."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from forks import run_ranks
from glmtune.errors import ConfigError, TrainingError
from glmtune.methods import apply_method
from glmtune.objectives import SftObjective
from glmtune.recipe import Lora, Recipe, load_recipe
from glmtune.run_files import read_json_lines
from glmtune.training.probe import Growth, Need, untouched
from glmtune.workflows import fitting
from glmtune.workflows.events import Note, Saved, drain
from glmtune.workflows.execute import training
from glmtune.workflows.remedies import Memory
from limits import TOO_MUCH, limited_training
from models import tiny_folder, tiny_model

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
ENOUGH = "2048 tokens"
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


def free(monkeypatch: pytest.MonkeyPatch, num_bytes: float) -> None:
    """So many bytes are free, and none are lost beyond the tensors: that differs from run to run."""
    monkeypatch.setattr(fitting, "free_memory", lambda device, mapped: int(num_bytes))
    monkeypatch.setattr(fitting, "with_losses", lambda need, *_, **__: need)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_measures_its_memory_equals_one_that_does_not_bit_by_bit(
    model: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout on: the random numbers are those of a run that has made no passes before step 1."""
    words = METHODS[method]
    notes = notes_of(recipe(model, tmp_path / "auto", *words))
    assert sum(text.startswith("memory: longest micro-batch ") for text in notes) == 1
    assert settled(tmp_path / "auto") == (ENOUGH, False)
    explicit = ["train.micro_batch_size=4", "train.gradient_checkpointing=false"]
    monkeypatch.setattr("glmtune.workflows.assemble.fit_into_memory", _not_measured)
    drain(training(recipe(model, tmp_path / "set", *words, *explicit)))
    assert figures(tmp_path / "auto") == figures(tmp_path / "set")
    first, second = weights_of(tmp_path / "auto"), weights_of(tmp_path / "set")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def _not_measured(plan: Any, objective: Any) -> Any:
    nothing = Growth(0.0, 0.0)
    need = Need(4, nothing, nothing, nothing, nothing, nothing, 1, 1, 1)
    return plan, Memory(need, free=0, state=2**30, longest_row=0, longest_validated=0)
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
    free(monkeypatch, 3.1 * 2**20)
    interrupted = training(made)
    while not isinstance(next(interrupted), Saved):
        pass
    interrupted.close()
    assert settled(tmp_path / "run") == ("256 tokens", 3)
    free(monkeypatch, 2**40)
    notes = [event.text for event in training(made, resume=True) if isinstance(event, Note)]
    assert not [text for text in notes if text.startswith("memory: ")]
    assert settled(tmp_path / "run") == ("256 tokens", 3)
    again = load_recipe(tmp_path / "run" / "recipe.yaml", [f"output={tmp_path / 'again'}"])
    drain(training(again))
    assert settled(tmp_path / "again") == ("256 tokens", 3)
    assert figures(tmp_path / "again") == figures(tmp_path / "run")


def test_less_memory_means_smaller_micro_batches_then_recomputation_and_the_same_losses(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {
        200: (ENOUGH, False),
        9: ("512 tokens", False),
        5.6: ("256 tokens", False),
        3.1: ("256 tokens", 3),
    }
    for mib in expected:
        free(monkeypatch, mib * 2**20)
        drain(training(recipe(model, tmp_path / str(mib), "method.dropout=0", "train.steps=2")))
    assert {mib: settled(tmp_path / str(mib)) for mib in expected} == expected
    whole, *parts = ([line[1:] for line in figures(tmp_path / str(mib))] for mib in expected)
    for part in parts:
        assert torch.tensor(sum(part, ())).allclose(torch.tensor(sum(whole, ())), rtol=1e-5)


def test_two_processes_settle_the_same_and_equal_one(model: Path, tmp_path: Path) -> None:
    words = ["method.dropout=0", "train.batch_size=5"]
    drain(training(recipe(model, tmp_path / "one", *words)))
    command = [
        "train", f"model={model}", f"output={tmp_path / 'two'}", f"data.train={ADVERTS}",
        "data.max_tokens=400", "data.max_rows=40", "data.holdout_rows=4", "train.steps=4", "train.lr=1e-2",
        "train.eval_every=2", "samples.prompts=[]", *words,
    ]  # fmt: skip
    done = run_ranks(2, "-m", "glmtune", *command, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("memory: longest micro-batch ") == 1
    assert settled(tmp_path / "two") == settled(tmp_path / "one")
    for one, two in zip(figures(tmp_path / "one"), figures(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "mib", "words"),
    [
        ("lora", 2.5, "data.max_tokens=144 data.overlong=cut_any"),
        ("full", 5.4, "train.optimizer=adamw_8bit"),
        ("full", 4.6, "method=lora"),
        ("full", 0.9, "method=lora data.max_tokens=48 data.overlong=cut_any"),
    ],
)
def test_what_does_not_fit_is_refused_with_settings_that_do(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, mib: float, words: str
) -> None:
    free(monkeypatch, mib * 2**20)
    with pytest.raises(ConfigError, match=r"memory: the smallest step .* needs about .* are free") as refused:
        drain(training(recipe(model, tmp_path / "run", *METHODS[method])))
    assert not (tmp_path / "run").exists()
    assert refused.value.hint == f"these settings would fit: {words}"
    drain(training(recipe(model, tmp_path / "run", *METHODS[method], *words.split())))
    assert settled(tmp_path / "run")[0] in ("256 tokens", 1)


def test_a_run_that_does_not_fit_is_begun_all_the_same_where_it_is_forced(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 2**20)
    events: list[Any] = []
    drain(training(recipe(model, tmp_path / "run"), force=True), events.append)
    warnings = [event.text for event in events if isinstance(event, Note) and event.is_warning]
    assert any(text.startswith("memory: this is more than is free") for text in warnings)
    assert settled(tmp_path / "run")[0] in ("256 tokens", 1)


@pytest.mark.parametrize("overlong", ["drop", "error"])
def test_the_hint_cuts_rows_that_would_else_be_dropped_or_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlong: str
) -> None:
    free(monkeypatch, 1.2 * 2**20)
    words = [f"data.overlong={overlong}", "data.max_tokens=2000"]
    with pytest.raises(ConfigError) as refused:
        drain(training(recipe(model, tmp_path / "run", *words)))
    found = refused.value.hint.removeprefix("these settings would fit: ").split()
    assert "data.overlong=cut_any" in found
    drain(training(recipe(model, tmp_path / "run", *words, *found)))


def test_a_run_is_resumed_only_where_it_fits(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(model, tmp_path / "run")
    interrupted = training(made)
    while not isinstance(next(interrupted), Saved):
        pass
    interrupted.close()
    free(monkeypatch, 1.5 * 2**20)
    with pytest.raises(ConfigError, match="memory: the smallest step of these settings") as refused:
        drain(training(made, resume=True))
    assert refused.value.hint.startswith(
        "a run is resumed as it began: end other programs; for another one, "
    )
    assert settled(tmp_path / "run") == (ENOUGH, False)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("could not create a primitive")])
@pytest.mark.parametrize("place", ["fitting.measure_need", "execute.fit"])
def test_an_allocation_that_fails_ends_a_run_without_a_trace_and_with_leaner_settings(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, place: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"glmtune.workflows.{place}", fail)
    with pytest.raises(TrainingError, match=r"^memory: there was none left \(.+\)") as refused:
        drain(training(recipe(model, tmp_path / "run")))
    leanest = "train.micro_batch_size=1 train.gradient_checkpointing=true"
    expected = leanest if place == "execute.fit" else "quant=int4"
    assert expected in refused.value.hint
    assert not (tmp_path / "run").exists()


def test_other_errors_of_a_step_stay_as_they_are(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("glmtune.workflows.execute.fit", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        drain(training(recipe(model, tmp_path / "run")))


@pytest.mark.skipif(not psutil.LINUX, reason="limits addresses")
@pytest.mark.parametrize("mib", [1150, *(pytest.param(n, marks=pytest.mark.slow) for n in (950, 1250, 1500))])
def test_under_a_real_limit_a_run_ends_well_or_leaves_no_trace(tmp_path: Path, mib: int) -> None:
    """The limit holds from the start of the command on, as `ulimit -v` in a shell."""
    rows = [{"prompt": "说", "response": "今天天气很好，我们一起去公园散步。" * 20}] * 12
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ["train", "model=glm-tiny", f"data.train={tmp_path / 'rows.json'}", f"output={tmp_path / 'run'}"]
    command = shlex.join([sys.executable, "-m", "glmtune", *words])
    done = subprocess.run(
        ["sh", "-c", f"ulimit -v {mib * 1024}; exec {command}"],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode in (0, 2), done.stderr
    assert (tmp_path / "run").exists() == (done.returncode == 0)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "error: memory: " in done.stderr
        assert "hint: " in done.stderr


def test_settings_that_are_given_are_kept_and_refused_if_they_do_not_fit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train.micro_batch_size=3", "train.gradient_checkpointing=2"]
    drain(training(recipe(model, tmp_path / "run", *words)))
    assert settled(tmp_path / "run") == (3, 2)
    free(monkeypatch, 6 * 2**20)
    with pytest.raises(ConfigError) as refused:
        drain(training(recipe(model, tmp_path / "other", *words)))
    automatic = "train.micro_batch_size=auto train.gradient_checkpointing=auto"
    assert refused.value.hint == f"these settings would fit: {automatic}"
    drain(training(recipe(model, tmp_path / "other", *automatic.split())))


@pytest.mark.slow
def test_under_a_real_limit_a_run_is_refused_and_its_hint_runs(tmp_path: Path) -> None:
    train = limited_training(tmp_path, rows=3, is_foretold=False)
    refused = run_ranks(1, *train, *TOO_MUCH, encoding="utf-8")
    assert refused.returncode == 2, refused.stderr
    error, hint = refused.stderr.splitlines()[-2:]
    assert error.startswith("error: memory: the smallest step of these settings, 4,000 tokens at once, needs")
    assert not (tmp_path / "run").exists()
    found = hint.removeprefix("hint: these settings would fit: ").split()
    assert found == ["train.micro_batch_size=auto", "train.gradient_checkpointing=auto"]
    done = run_ranks(1, *train, *found, encoding="utf-8")
    assert done.returncode == 0, done.stderr
