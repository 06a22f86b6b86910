"""Laws of whole runs: resumed == uninterrupted, two processes == one, the best is kept, nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim import AdamW

from forks import run_fork, run_ranks
from glmtune import load_tokenizer
from glmtune.adapters.store import read_card
from glmtune.data.batches import Steps
from glmtune.errors import CheckpointError, ConfigError, TrainingError
from glmtune.locations import resolve
from glmtune.recipe import Recipe, load_recipe
from glmtune.reports.curves import candidates, lowest
from glmtune.training import stopping
from glmtune.training.stopping import Interrupted
from glmtune.workflows.early import training_recipe
from glmtune.workflows.events import Evaluated, Event, Note, Saved, Stepped, drain
from glmtune.workflows.execute import training
from glmtune.workflows.rows import data_hash, training_rows
from killed import hash_checkpoint
from models import tiny_folder, tiny_v1_folder
from proofs import edit_card

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


def recipe(model: Path, output: Path, *words: str) -> Recipe:
    values = {
        "model": str(model),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 40, "holdout_rows": 4},
        "train": {"steps": 10, "batch_size": 4, "lr": 1e-2, "eval_every": 5},
        "samples": {"prompts": []},
    }
    return load_recipe(values, words)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def figures(folder: Path) -> list[tuple[float, ...]]:
    names = ("step", "loss", "grad_norm", "lr", "eval_loss")
    return [tuple(line[name] for name in names if name in line) for line in metrics(folder)]


METHODS = {
    "lora": ["method=lora"],
    "full": ["method=full"],
    "freeze": ["method=freeze", "method.num_layers=1"],
    "ptuning": ["method=ptuning", "method.num_prefix_tokens=4"],
    "ptuning projected": ["method=ptuning", "method.num_prefix_tokens=4", "method.projection=true"],
    "qlora": ["method=lora", "quant=nf4"],
    "full with 8-bit AdamW": ["method=full", "train.optimizer=adamw_8bit"],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(tmp_path: Path, method: str) -> None:
    """Dropout on: the random numbers go on too."""
    model = tiny_folder(tmp_path / "model", hidden_size=64, ffn_hidden_size=128, kv_channels=16)
    words = (*METHODS[method], "train.batch_size=2")
    whole, parts = (recipe(model, tmp_path / name, *words) for name in ("whole", "parts"))
    drain(training(whole))
    interrupted = training(parts)
    while not isinstance(next(interrupted), Saved):  # the checkpoint at step 5
        pass
    for _ in range(2):  # two more steps that the resumed run must forget
        next(interrupted)
    interrupted.close()
    assert len(metrics(tmp_path / "parts")) == 9
    result = drain(training(parts, resume=True))
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    assert result.metrics["steps"] == 10
    files = [
        sorted((tmp_path / name / "last").resolve().glob("*.safetensors")) for name in ("whole", "parts")
    ]
    for mine, theirs in zip(*files, strict=True):
        first, second = load_file(mine), load_file(theirs)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def _hears_ctrl_c() -> Iterator[None]:
    """As in a terminal; what runs in the background may have been told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def checkpoint_files(run: Path) -> dict[str, str]:
    """Of the last checkpoint, the weights' hash and that of all that a run goes on with."""
    hashes = hash_checkpoint(run / "last")
    return {name: hashes[name] for name in ("adapter_model.safetensors", "state.pt")}


@pytest.mark.usefixtures("_hears_ctrl_c")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_run_ended_within_a_step_and_gone_on_with_equals_one_never_ended(
    model: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train.steps=4", "train.eval_every=2", "train.save_every=4")
    whole, parts = (recipe(model, tmp_path / name, *words) for name in ("whole", "parts"))
    drain(training(whole))
    before, steps, step = signal.getsignal(number), [0], AdamW.step

    def interrupted_step(self: Any, *args: Any) -> Any:
        steps[0] += 1
        if steps[0] == 3:  # half way through a step
            signal.raise_signal(number)
        return step(self, *args)

    monkeypatch.setattr(AdamW, "step", interrupted_step)
    with pytest.raises(
        KeyboardInterrupt, match=r"all 3 of 4 steps .* glmtune train .*parts --resume"
    ) as told:
        drain(training(parts))
    assert isinstance(told.value, Interrupted)
    assert told.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert (tmp_path / "parts" / "last").resolve().name == "step-000003"
    drain(training(training_recipe(tmp_path / "parts"), resume=True))
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    assert checkpoint_files(tmp_path / "parts") == checkpoint_files(tmp_path / "whole")


@pytest.mark.usefixtures("_hears_ctrl_c")
def test_ctrl_c_before_the_first_step_leaves_no_folder_in_the_way(model: Path, tmp_path: Path) -> None:
    def hear(event: Event) -> None:
        if isinstance(event, Evaluated):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        drain(training(recipe(model, tmp_path / "run")), hear)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_hears_ctrl_c")
def test_a_second_ctrl_c_ends_at_once_and_keeps_what_was_saved(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "TWICE_S", 0)

    def hear(event: Event) -> None:
        if isinstance(event, Stepped) and event.log.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="at once"):
        drain(training(recipe(model, tmp_path / "run", "train.steps=4", "train.eval_every=2")), hear)
    assert (tmp_path / "run" / "last").resolve().name == "step-000002"


def torchrun(words: list[str], *program: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *(program or ("-m", "glmtune")), *words], env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_an_error_of_one_process_alone_is_told_by_that_one(model: Path, tmp_path: Path) -> None:
    (tmp_path / "one_fails.py").write_text(
        "import os\n"
        "from importlib import import_module\n"
        "from glmtune.cli import main\n"
        "from glmtune.errors import OutputError\n"
        "def fail(*_, **__):\n"
        "    raise OutputError('disk of the second machine: full', hint='free some space')\n"
        "if os.environ['RANK'] == '1':\n"
        "    import_module('glmtune.workflows.assemble').collate = fail\n"
        "main()\n",
        encoding="utf-8",
    )
    words = [f"model={model}", f"data.train={ADVERTS}", f"output={tmp_path / 'run'}", "data.max_rows=10",
             "data.max_tokens=400"]  # fmt: skip
    done = torchrun(["train", *words], str(tmp_path / "one_fails.py"))
    assert done.returncode != 0
    assert "error: process 1: disk of the second machine: full" in done.stderr
    assert "hint: free some space" in done.stderr


def test_an_error_of_all_processes_is_told_once(model: Path, tmp_path: Path) -> None:
    done = torchrun(["train", f"model={model}", "data.train=gone.json", f"output={tmp_path / 'run'}"])
    assert done.stderr.count("error: ") == 1


@pytest.mark.slow
def test_one_process_that_is_asked_to_end_ends_all_at_the_same_saved_step(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "one_stops.py").write_text(
        "import os, signal\n"
        "from importlib import import_module\n"
        "from glmtune.cli import main\n"
        "loop = import_module('glmtune.training.loop')\n"
        "found, end = [], loop.MemoryMeter.end\n"
        "def count(meter, phase):\n"
        "    found.extend([1] * (phase == 'step'))\n"
        "    if len(found) == 3 and os.environ['RANK'] == '1':\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    return end(meter, phase)\n"
        "loop.MemoryMeter.end = count\n"
        "main()\n",
        encoding="utf-8",
    )
    run = tmp_path / "run"
    words = [f"model={model}", f"data.train={ADVERTS}", f"output={run}", "data.max_rows=10",
             "data.max_tokens=400", "train.steps=9"]  # fmt: skip
    done = torchrun(["train", *words, "samples.prompts=[]"], str(tmp_path / "one_stops.py"))
    assert done.returncode != 0
    assert done.stderr.count(f"all 3 of 9 steps so far are saved; go on with: glmtune train {run} --res") == 1
    assert (run / "last").resolve().name == "step-000003"


@pytest.mark.parametrize("method", ["lora", pytest.param("ptuning projected", marks=pytest.mark.slow)])
def test_two_processes_equal_one(model: Path, tmp_path: Path, method: str) -> None:
    changed = [*METHODS[method], "method.dropout=0", "train.batch_size=5"]
    drain(training(recipe(model, tmp_path / "one", *changed)))
    words = [
        f"model={model}", f"output={tmp_path / 'two'}", f"data.train={ADVERTS}", "data.max_tokens=400",
        "data.max_rows=40", "data.holdout_rows=4", "train.steps=10", "train.lr=1e-2", "train.eval_every=5",
        "samples.prompts=[]", *changed,
    ]  # fmt: skip
    done = run_ranks(2, "-m", "glmtune", "train", *words, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("global step 10 ( 100.00% )") == 1  # one process prints, of the whole
    one, two = ([line for line in metrics(tmp_path / name) if "loss" in line] for name in ("one", "two"))
    assert len(one) == 10
    for single, double in zip(one, two, strict=True):
        assert double["loss"] == pytest.approx(single["loss"], rel=1e-6)
        assert double["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-6)
        assert double["tokens"] == single["tokens"]
    alone, each = (
        json.loads((tmp_path / name / "memory.json").read_text(encoding="utf-8"))["measured"]
        for name in ("one", "two")
    )
    assert each["adapter"] == alone["adapter"]
    assert each["gradients"] == 2 * alone["gradients"]  # a copy is exchanged


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 5])
def test_every_pass_through_the_model_is_made_by_every_process(
    model: Path, tmp_path: Path, rows: int
) -> None:
    """Steps, evaluations, samples, cards: weights that are shared out would hang otherwise."""
    (tmp_path / "counted.py").write_text(
        "import os\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from glmtune.cli import main\n"
        "told = []\n"
        "def hear(module, inputs, output):\n"
        "    if isinstance(module, torch.nn.Embedding):\n"
        "        told.append('learns' if torch.is_grad_enabled() else 'answers')\n"
        "torch.nn.modules.module.register_module_forward_hook(hear)\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    Path(f'passes-{os.environ[\"RANK\"]}').write_text(' '.join(told))\n",
        encoding="utf-8",
    )
    words = [f"model={model}", f"data.train={ADVERTS}", f"output={tmp_path / 'run'}", "data.max_rows=10",
             "data.max_tokens=400", f"train.batch_size={rows}", f"data.holdout_rows={rows}", "train.steps=2",
             "train.eval_every=1", "train.gradient_checkpointing=false", "train.micro_batch_size=1",
             "samples.max_new_tokens=4", "samples.built_in=false"]  # fmt: skip
    done = torchrun(["train", *words], str(tmp_path / "counted.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"passes-{rank}").read_text().split() for rank in (0, 1))
    assert first == second
    probed = 3  # short passes before step 1 that measure the memory
    assert first.count("learns") == probed + 2 * ((rows + 1) // 2)
    assert len((tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_early_stopping_keeps_the_best_checkpoint(model: Path, tmp_path: Path) -> None:
    settings = recipe(
        model, tmp_path / "run", "train.lr=0", "train.steps=40", "train.eval_every=2", "train.patience=3",
        "train.keep_checkpoints=1",
    )  # fmt: skip
    notes = [event.text for event in training(settings) if isinstance(event, Note)]
    assert "stopped early: no better evaluation loss in 3 evaluations" in notes
    evaluated = [line["step"] for line in metrics(tmp_path / "run") if "eval_loss" in line]
    assert evaluated == [0, 2, 4, 6, 8]  # with learning rate 0, the first is the best
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000008"]
    assert (tmp_path / "run" / "best").resolve().name == "step-000002"
    assert (tmp_path / "run" / "last").resolve().name == "step-000008"
    assert lowest(candidates(metrics(tmp_path / "run"))) == 2  # the star of loss.png


@pytest.mark.parametrize("limit", [pytest.param(8192, marks=pytest.mark.slow), 150_000])
def test_a_full_disk_ends_the_run_with_what_was_there_intact(model: Path, tmp_path: Path, limit: int) -> None:
    """A real one, of sorts: the kernel lets no file grow beyond the picture, or beyond half the weights."""
    words = [f"model={model}", f"data.train={ADVERTS}", "output=run", "train.steps=2", "data.max_tokens=400"]
    command = [sys.executable, "-m", "glmtune", "train", *words, "method=full"]
    done = run_fork(command, cwd=tmp_path, encoding="utf-8", limit_bytes=limit)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert "cannot be written: " in error
    assert hint.startswith("hint: check free space")
    assert ("step-000001" in error) == (limit > 8192)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_run_whose_first_checkpoint_cannot_be_opened_ends_there(model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(model, tmp_path / "base"))
    events = training(recipe(base, tmp_path / "run", "train.steps=4", "train.save_every=2"))
    while not isinstance(next(events), Evaluated):
        pass
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(
        json.dumps({**config, "num_layers": 3, "num_hidden_layers": 3}), encoding="utf-8"
    )
    with pytest.raises(CheckpointError, match=r"tensor .* is missing"):
        drain(events)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_run_is_resumed_with_its_own_settings_only(model: Path, tmp_path: Path) -> None:
    drain(training(recipe(model, tmp_path / "run", "train.steps=2")))
    with pytest.raises(ConfigError, match=r"train\.lr is .* in this run, 1\.0 here"):
        drain(training(recipe(model, tmp_path / "run", "train.steps=2", "train.lr=1"), resume=True))
    with pytest.raises(ConfigError, match="no run to resume here"):
        drain(training(recipe(model, tmp_path / "other"), resume=True))


def test_a_run_records_its_methods_rate_and_is_resumed_without_naming_it(model: Path, tmp_path: Path) -> None:
    values = recipe(model, tmp_path / "run", "train.steps=2").model_dump(exclude_unset=True)
    values["train"].pop("lr")
    drain(training(load_recipe(values)))
    assert load_recipe(tmp_path / "run" / "recipe.yaml").train.lr == 1e-4
    assert [line["lr"] for line in metrics(tmp_path / "run") if "lr" in line] == [1e-4, 5e-5]
    for again in (load_recipe(values), load_recipe(tmp_path / "run" / "recipe.yaml")):
        drain(training(again, resume=True))


def tamper(checkpoint: Path) -> None:
    (path,) = checkpoint.glob("*.safetensors")
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].numel())
    save_file(tensors | {name: tensors[name] * (1 + 1e-6)}, path, {"format": "pt"})


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_is_not_resumed_from_other_weights_than_it_saved(
    model: Path, tmp_path: Path, method: str
) -> None:
    settings = recipe(model, tmp_path / "run", *METHODS[method], "train.steps=2")
    drain(training(settings))
    tamper((tmp_path / "run" / "last").resolve())
    edit_card((tmp_path / "run" / "last").resolve(), lambda card: card.pop("files"))  # an earlier version's
    with pytest.raises(CheckpointError, match="not the weights that were saved: their hash") as caught:
        drain(training(settings, resume=True))
    assert "step-000002" in str(caught.value)
    assert caught.value.hint


def test_a_run_is_not_resumed_with_other_rows(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ADVERTS.read_text(encoding="utf-8"), encoding="utf-8")
    words = ("train.steps=2", f"data.train={rows}")
    drain(training(recipe(model, tmp_path / "run", *words)))
    rows.write_text("\n".join(ADVERTS.read_text(encoding="utf-8").splitlines()[:50]), encoding="utf-8")
    with pytest.raises(ConfigError, match="the train file has changed"):
        drain(training(recipe(model, tmp_path / "run", *words), resume=True))


def test_a_checkpoint_names_the_rows_that_were_read_whatever_has_become_of_the_file(
    model: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ADVERTS.read_bytes())
    words = ("train.steps=1", f"data.train={rows}")
    drain(training(recipe(model, tmp_path / "run", *words)), lambda _: rows.write_text("", encoding="utf-8"))
    card = read_card(tmp_path / "run" / "last")
    assert card
    assert card.data == {"train_sha256": data_hash(ADVERTS)}


def test_a_run_without_a_checkpoint_says_what_to_do(model: Path, tmp_path: Path) -> None:
    settings = recipe(model, tmp_path / "run")
    begun = training(settings)
    while not isinstance(next(begun), Evaluated):
        pass
    begun.close()
    for resume, message in ((True, "has no checkpoint to resume from"), (False, "not empty")):
        with pytest.raises(ConfigError, match=message) as caught:
            drain(training(settings, resume=resume))
        assert "delete it" in caught.value.hint


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps that keeps all its checkpoints."""
    run = tmp_path_factory.mktemp("finished") / "run"
    drain(training(recipe(model, run, "train.steps=4", "train.eval_every=1")))
    return run


def moved(run: Path, link: str, step: int) -> None:
    (run / link).unlink()
    (run / link).symlink_to(f"checkpoints/step-{step:06d}")


def test_links_that_an_earlier_version_left_wrong_are_told_and_mended_by_resuming(
    finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    moved(run, "best", 3)
    with pytest.raises(
        CheckpointError, match=r"best: leads to step 3, but eval\.json names step 4"
    ) as caught:
        resolve(run)
    assert f"glmtune train {run} --resume" in caught.value.hint
    drain(training(load_recipe(run / "recipe.yaml", [f"output={run}"]), resume=True))
    assert resolve(run).trained == run / "checkpoints" / "step-000004"


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_link_to_a_checkpoint_that_is_gone_is_an_error(finished: Path, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    if name == "last":
        (run / "best").unlink()
        (run / "eval.json").unlink()
    moved(run, name, 77)
    with pytest.raises(CheckpointError, match=rf"{name}: leads to no checkpoint: .*step-000077") as caught:
        resolve(run)
    if name == "best":  # as the hints say
        assert "step-000004" in caught.value.hint
        resolve(run / "checkpoints" / "step-000004")
    else:
        assert f"delete the link {run / 'last'}" in caught.value.hint
        (run / "last").unlink()
        resolve(run)


@pytest.mark.parametrize("lost", [["last"], ["best"], ["best", "last"]])
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_whose_links_are_lost_goes_on_from_its_newest_checkpoint(
    finished: Path, tmp_path: Path, lost: list[str], is_finished: bool
) -> None:
    """As a process leaves it that was killed between its first checkpoint and the links."""
    run = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    for name in lost if is_finished else [*lost, "eval.json"]:
        (run / name).unlink()
    if not is_finished:
        assert resolve(run).trained == run / "checkpoints" / "step-000004"
    drain(training(load_recipe(run / "recipe.yaml", [f"output={run}"]), resume=True))
    assert {(run / name).resolve().name for name in ("best", "last")} == {"step-000004"}


def test_a_run_goes_on_whatever_figures_an_earlier_version_did_not_write(
    finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    lines = metrics(run)
    kept = [{k: v for k, v in line.items() if k not in ("step_s", "peak_memory_gib")} for line in lines]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    result = drain(training(load_recipe(run / "recipe.yaml", [f"output={run}"]), resume=True))
    assert result.metrics["peak_memory_gib"] is None
    assert result.metrics["loss"] == lines[-2]["loss"]


def test_what_a_kill_left_of_a_runs_first_file_does_not_stand_in_the_way(model: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.yaml.partial").write_text("model: /mod", encoding="utf-8")
    drain(training(recipe(model, tmp_path / "run", "train.steps=1")))
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_an_early_stopped_run_has_nothing_to_resume(model: Path, tmp_path: Path) -> None:
    settings = recipe(model, tmp_path / "run", "train.lr=0", "train.eval_every=1", "train.patience=2")
    drain(training(settings))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    drain(training(settings, resume=True))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_loss_that_is_not_a_number_is_never_the_best(model: Path, tmp_path: Path) -> None:
    settings = recipe(model, tmp_path / "run", "train.lr=1e30", "train.eval_every=1", "train.max_grad_norm=0")
    with pytest.raises(TrainingError):
        drain(training(settings))
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.parametrize("save_every", [1, 2])
def test_weights_that_a_step_has_ruined_are_no_checkpoint(
    model: Path, tmp_path: Path, save_every: int
) -> None:
    words = (f"train.save_every={save_every}", "train.lr=1e30", "train.max_grad_norm=0", "method=full")
    with pytest.raises(TrainingError):
        drain(training(recipe(model, tmp_path / "run", *words)))
    assert not (tmp_path / "run" / "last").exists()


FIRST_NORM = "transformer.layers.0.input_layernorm"


@pytest.fixture
def faulty(tmp_path: Path) -> tuple[Path, Path, str]:
    """A model with an embedding too large for a mean, rows of which one has it, in step 8; its place."""
    rows, broken = tmp_path / "rows.jsonl", tmp_path / "model"
    model = tiny_v1_folder(tmp_path / "sound", tie_word_embeddings=False)
    lines = ADVERTS.read_text(encoding="utf-8").splitlines()
    rows.write_text("\n".join(lines), encoding="utf-8")
    tokenizer = load_tokenizer(model)
    encoded = training_rows(tokenizer, recipe(model, tmp_path, f"data.train={rows}").data).train.rows
    place = Steps(encoded, batch_size=4, micro_batch_size=1, seed=42).rows_of(8)[2].where
    number = int(place.rpartition(":")[2]) - 1
    row = json.loads(lines[number])
    lines[number] = json.dumps({**row, "summary": "\N{YEN SIGN}" + row["summary"]}, ensure_ascii=False)
    rows.write_text("\n".join(lines), encoding="utf-8")
    known = {int(i) for row in encoded for i in row.input_ids}
    rare = next(i for i in tokenizer.encode_plain("\N{YEN SIGN}") if i not in known)
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["transformer.word_embeddings.weight"][rare] = torch.finfo(torch.float32).max
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    return broken, rows, place


def test_a_fault_names_its_row_and_leaves_a_checkpoint_to_go_on_from(
    faulty: tuple[Path, Path, str], tmp_path: Path
) -> None:
    broken, rows, place = faulty
    settings = recipe(broken, tmp_path / "run", f"data.train={rows}")
    with pytest.raises(TrainingError) as caught:
        drain(training(settings))
    assert str(caught.value).startswith(f"step 8: the loss is nan, first in {FIRST_NORM} at {place};")
    assert (tmp_path / "run" / "last").resolve().name == "step-000005"
    shutil.copyfile(tmp_path / "sound" / "model.safetensors", broken / "model.safetensors")
    drain(training(settings, resume=True))
    drain(training(recipe(broken, tmp_path / "whole", f"data.train={rows}")))
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_a_fault_in_one_process_stops_all_by_its_name(faulty: tuple[Path, Path, str], tmp_path: Path) -> None:
    broken, rows, place = faulty
    words = [
        f"model={broken}", f"output={tmp_path / 'run'}", f"data.train={rows}", "data.max_tokens=400",
        "data.max_rows=40", "data.holdout_rows=4", "train.steps=10", "train.batch_size=4",
        "samples.prompts=[]", "retain.ratio=0", "retain.report=off",
    ]  # fmt: skip
    done = run_ranks(2, "-m", "glmtune", "train", *words, encoding="utf-8")
    assert done.returncode != 0
    assert f"step 8: the loss is nan, first in {FIRST_NORM} at {place};" in done.stderr


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_a_models_own_weights_are_trained_from_what_its_files_hold_unrounded(
    method: str, tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "half", dtype=torch.float16)
    words = (*METHODS[method], "dtype=bf16", "train.lr=0", "train.steps=1")
    drain(training(recipe(folder, tmp_path / "run", *words)))
    (before,), (after,) = (list(path.glob("*.safetensors")) for path in (folder, tmp_path / "run" / "last"))
    stored, trained = load_file(before), load_file(after)
    assert trained
    assert all(torch.equal(stored[name].float(), values) for name, values in trained.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plan_names_the_arithmetic_that_is_done(model: Path, tmp_path: Path, precision: str) -> None:
    settings = recipe(model, tmp_path / "run", "train.steps=1", f"train.precision={precision}")
    notes = [event.text for event in training(settings) if isinstance(event, Note)]
    assert any(note.startswith("plan: ") and note.endswith(precision) for note in notes)
    over_held = recipe(
        model, tmp_path / "other", "train.steps=1", "dtype=bf16", f"train.precision={precision}"
    )
    notes = [event.text for event in training(over_held) if isinstance(event, Note)]
    assert any(note.startswith("plan: ") and note.endswith(precision) for note in notes)


def test_the_plan_counts_the_rows_of_small_last_steps(model: Path, tmp_path: Path) -> None:
    settings = recipe(model, tmp_path / "run", "train.batch_size=500", "train.steps=2")
    notes = [event.text for event in training(settings) if isinstance(event, Note)]
    assert any("2 steps of up to 500 rows, 80 samples in all, 2.00 epochs" in note for note in notes)


def test_tensorboard_gets_the_curves(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    drain(training(recipe(model, tmp_path / "run", "train.steps=2", "train.report_to=tensorboard")))
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"eval_loss" in events.read_bytes()


def test_the_trained_set_of_rows_covers_every_epoch_once(model: Path, tmp_path: Path) -> None:
    settings = recipe(model, tmp_path / "run", "train.steps=null", "train.epochs=2", "train.batch_size=7")
    drain(training(settings))
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert len(lines) == 12  # 40 rows in steps of 7: 6 a pass, the last with 5
    assert sum(line["tokens"] for line in lines[:6]) == sum(line["tokens"] for line in lines[6:])
