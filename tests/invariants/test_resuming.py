"""What a run goes on from and with: the newest whole checkpoint, other settings, a disk that was full."""

import json
import os
import pickle
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from closeness import assert_close
from commands import glmtune
from forks import run_ranks
from glmtune.adapters.store import read_card
from glmtune.errors import CheckpointError, ConfigError, OutputError
from glmtune.recipe import Recipe, load_recipe, to_yaml
from glmtune.run_files import list_checkpoints, read_json_lines
from glmtune.training.state import STATE_FILE
from glmtune.training.stopping import Interrupted
from glmtune.workflows import before_after, execute
from glmtune.workflows.before_after import SampleQuestion
from glmtune.workflows.events import Event, Note, Saved, Stepped, drain
from glmtune.workflows.execute import training
from glmtune.workflows.resuming import resume_words, with_full_paths
from killed import TIMES, hash_checkpoint
from models import tiny_folder

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), hidden_size=16, ffn_hidden_size=32)


def recipe(model: Path, output: Path, *words: str) -> Recipe:
    values = {
        "model": str(model),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 200, "max_rows": 12, "holdout_rows": 2},
        "train": {"steps": 4, "batch_size": 2, "lr": 3e-2, "schedule": "constant", "eval_every": 2},
        "samples": {"prompts": []},
    }
    return load_recipe(values, words)


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with checkpoints at 2 and 4, and dropout."""
    run = tmp_path_factory.mktemp("trained") / "run"
    drain(training(recipe(model, run)))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def resumed(settings: Recipe) -> list[str]:
    """Go on with a run; the notes that it gives."""
    events: list[Event] = []
    drain(training(settings, resume=True), events.append)
    return [event.text for event in events if isinstance(event, Note)]


def steps_of(run: Path) -> list[dict[str, object]]:
    """The figures of each step, without the times."""
    lines = [line for line in read_json_lines(run / "metrics.jsonl") if "loss" in line]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def forget_hashes(card: Path) -> None:
    """As an early version saved it, and cut off."""
    card.unlink()
    truncate(card.with_name(STATE_FILE))
    environment = card.parents[2] / "env.json"
    facts = json.loads(environment.read_text(encoding="utf-8"))
    del facts["types"]
    environment.write_text(json.dumps(facts), encoding="utf-8")


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        (STATE_FILE, truncate, "state.pt: is not as it was saved"),
        (STATE_FILE, Path.unlink, "state.pt: is missing"),
        ("adapter_model.safetensors", truncate, "adapter_model.safetensors: is not as it was saved"),
        ("glmtune.json", truncate, "glmtune.json"),
        ("glmtune.json", Path.unlink, "glmtune.json: is missing"),
        (
            "glmtune.json",
            forget_hashes,
            "state.pt: truncated",
        ),
    ],
    ids=["truncated", "deleted", "weights", "card", "card deleted", "no card"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_gone_on_with(
    model: Path, trained: Path, run: Path, name: str, damage: Callable[[Path], object], reason: str
) -> None:
    last = run / "checkpoints" / "step-000004"
    damage(last / name)
    [told] = [text for text in resumed(recipe(model, run)) if "is not whole" in text]
    assert told.startswith("step-000004 is not whole, and is kept as ")
    assert reason in told
    assert (run / "checkpoints" / "damaged-step-000004").is_dir()
    assert hash_checkpoint(last) == hash_checkpoint(trained / "last")
    assert steps_of(run) == steps_of(trained)


def test_a_checkpoint_with_code_in_it_is_not_run_and_the_one_before_gone_on_with(
    model: Path, trained: Path, run: Path, tmp_path: Path
) -> None:
    last, mark = run / "checkpoints" / "step-000004", tmp_path / "executed"
    for content in (pickle.dumps(Bomb(mark)), pickle.dumps(Bomb(mark), protocol=2)):
        (last / STATE_FILE).write_bytes(content)
        card = read_card(last)
        assert card
        card.save(last)  # with the right hash of it, as its author would
        [told] = [text for text in resumed(recipe(model, run)) if "is not whole" in text]
        assert "state.pt: damaged, or written by torch before 1.6" in told
        assert not mark.exists()
        assert hash_checkpoint(last) == hash_checkpoint(trained / "last")


def test_without_any_whole_checkpoint_each_is_named_with_its_reason(model: Path, run: Path) -> None:
    for path in list_checkpoints(run):
        (path / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"none of its 2 checkpoints is whole") as caught:
        resumed(recipe(model, run))
    for step in (2, 4):
        assert f"step-00000{step}/state.pt: is missing" in str(caught.value)
    assert len(list_checkpoints(run)) == 2  # nothing was set aside


def test_a_link_to_a_checkpoint_that_is_gone_is_mended_by_resuming(model: Path, run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000004")
    (run / "best").unlink()
    (run / "best").symlink_to("checkpoints/step-000002")
    assert any(text.startswith("resumed from step-000002") for text in resumed(recipe(model, run)))
    assert (run / "last").resolve().name == "step-000004"


def test_a_damaged_best_is_told(model: Path, run: Path) -> None:
    settings = recipe(model, run, "train.lr=0")  # nothing gets better than step 2
    shutil.rmtree(run)
    drain(training(settings))
    truncate(run / "best" / STATE_FILE)
    assert (run / "best").resolve().name == "step-000002"
    assert any(text.startswith("the best checkpoint so far is not whole: ") for text in resumed(settings))


def test_other_evaluations_checkpoints_and_samples_change_no_step(
    model: Path, trained: Path, run: Path
) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000004")
    words = ("train.eval_every=1", "train.save_every=1", "train.log_every=2", "train.keep_checkpoints=3",
             "distributed.timeout_s=900")  # fmt: skip
    notes = resumed(recipe(model, run, *words, "samples.prompts=[你好]", "samples.max_new_tokens=2"))
    assert "train.eval_every: 2 so far, 1 from here; recipe.yaml has that now" in notes
    assert steps_of(run) == steps_of(trained)
    assert hash_checkpoint(run / "last") == hash_checkpoint(trained / "last")
    assert load_recipe(run / "recipe.yaml").train.eval_every == 1
    resumed(load_recipe(run / "recipe.yaml", [f"output={run}"]))  # without naming them again


def test_a_damaged_newest_that_is_the_best_leaves_the_one_before_with_its_own_best(
    model: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints 2 and 3 are kept, 3 is the best one: going back to 2 needs 1, the best until then."""
    losses, real = [9.0, 2.0, 3.0, 1.0, 3.0], execute._evaluation_loss
    monkeypatch.setattr(
        execute, "_evaluation_loss", lambda run, rows: real(run, rows) * 0 + losses[run.progress.step]
    )
    settings = recipe(model, run, "train.eval_every=1")
    shutil.rmtree(run)
    drain(training(settings))
    expected = hash_checkpoint(run / "last"), hash_checkpoint(run / "best")
    shutil.rmtree(run)
    made = training(settings)
    while not (run / "checkpoints" / "step-000003").exists():
        next(made)
    made.close()
    truncate(run / "checkpoints" / "step-000003" / STATE_FILE)
    assert any(text.startswith("resumed from step-000002") for text in resumed(settings))
    assert (hash_checkpoint(run / "last"), hash_checkpoint(run / "best")) == expected


def test_a_run_that_stopped_early_has_all_its_samples_after_a_kill(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(before_after, "QUESTIONS", (SampleQuestion(("你是谁？",)),))
    words = ("train.lr=0", "train.eval_every=1", "train.patience=1", "train.steps=9",
             "samples.prompts=[你好]", "samples.max_new_tokens=2")  # fmt: skip
    settings = recipe(model, tmp_path / "whole", *words)
    drain(training(settings))
    for event in (made := training(recipe(model, tmp_path / "run", *words))):
        if isinstance(event, Saved) and event.path.name == "step-000002":  # the last one: no better loss
            break
    made.close()
    resumed(recipe(model, tmp_path / "run", *words))
    told = [read_json_lines(tmp_path / name / "samples.jsonl") for name in ("run", "whole")]
    first, second = ([(line["step"], line["prompt"], line["answer"]) for line in lines] for lines in told)
    assert first == second
    assert [step for step, prompt, _ in first if prompt == "你是谁？"] == [0, 2]


def test_a_signal_in_the_last_step_ends_the_run_once_that_is_saved(
    model: Path, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="all 4 of 4 steps so far are saved"):
        for event in training(recipe(model, run)):
            if isinstance(event, Stepped) and event.log.step == 4:
                signal.raise_signal(signal.SIGTERM)
    assert not (run / "eval.json").exists()
    resumed(recipe(model, run))
    assert (run / "eval.json").exists()
    assert hash_checkpoint(run / "last") == hash_checkpoint(trained / "last")


def test_a_checkpoint_that_is_deleted_under_a_run_ends_nothing(model: Path, run: Path) -> None:
    shutil.rmtree(run)
    steps = []
    for event in training(recipe(model, run, "train.eval_every=1")):
        if isinstance(event, Saved):
            steps.append(event.path.name)
            shutil.rmtree(event.path)  # to make room
    assert steps == ["step-000001", "step-000002", "step-000003", "step-000004"]


def test_a_dry_run_says_where_it_would_go_on(model: Path, run: Path, tmp_path: Path) -> None:
    words = (run, "train.steps=6", "--resume", "--dry-run")
    done = glmtune("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "goes on from step-000004: 2 of 6 steps to go" in done.stdout
    for path in list_checkpoints(run):
        (path / STATE_FILE).unlink()
    done = glmtune("train", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "none of its 2 checkpoints is whole" in done.stderr
    shutil.rmtree(run / "checkpoints")
    done = glmtune("train", *words, f"train.copy_to=file://{tmp_path}/copies", cwd=tmp_path)
    assert done.returncode == 2
    assert "a dry run fetches none from file://" in done.stderr


def test_a_run_that_was_moved_goes_on_where_it_is_now(model: Path, run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run)
    with pytest.raises(Interrupted, match=f"all 2 of 4 steps so far are saved; go on with: .*{run}"):
        for event in training(recipe(model, run)):
            if isinstance(event, Stepped) and event.log.step == 2:
                signal.raise_signal(signal.SIGTERM)
    run.rename(moved := tmp_path / "moved")
    told = glmtune("status", moved, cwd=tmp_path).stdout
    assert "all 2 of 4 steps so far are saved" in told
    assert f"train {moved} --resume" in told
    assert str(run) not in told


@pytest.mark.parametrize(
    ("command", "end"),
    [("", " --resume"), ("glmtune train m --nproc 2", " --resume --nproc 2"), ("x --nproc=8", " --nproc 8")],
)
def test_a_run_is_gone_on_with_by_as_many_processes(command: str, end: str) -> None:
    assert resume_words(Path("runs/a b"), command).startswith("glmtune train 'runs/a b' --resume")
    assert resume_words(Path("runs/a b"), command).endswith(end)


def test_a_longer_run_at_a_constant_rate_is_the_run_of_that_length(
    model: Path, run: Path, tmp_path: Path
) -> None:
    notes = resumed(recipe(model, run, "train.steps=6"))
    assert "train.steps: 4 so far, 6 from here; recipe.yaml has that now" in notes
    drain(training(recipe(model, tmp_path / "whole", "train.steps=6")))
    assert steps_of(run) == steps_of(tmp_path / "whole")
    assert hash_checkpoint(run / "last") == hash_checkpoint(tmp_path / "whole" / "last")
    with pytest.raises(ConfigError, match=r"6 steps are made already, and train\.steps is 5 here"):
        resumed(recipe(model, run, "train.steps=5"))


@pytest.mark.parametrize("words", [["train.schedule=linear"], ["method=adalora"]])
def test_where_the_steps_depend_on_the_length_it_stays(model: Path, run: Path, words: list[str]) -> None:
    (run / "recipe.yaml").write_text(to_yaml(with_full_paths(recipe(model, run, *words))), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"train\.steps is 4 in this run, 6 here"):
        resumed(recipe(model, run, *words, "train.steps=6"))


def test_all_settings_that_change_a_step_are_listed_with_the_command_of_a_new_run(
    model: Path, run: Path
) -> None:
    words = ("train.lr=1", "train.seed=7", "method.r=4", "train.eval_every=1")
    with pytest.raises(ConfigError) as caught:
        resumed(recipe(model, run, *words))
    for told in (
        "train.lr is 0.03 in this run, 1.0 here",
        "train.seed is 42 in this run, 7 here",
        "method.r is",
    ):
        assert told in str(caught.value)
    assert "eval_every" not in str(caught.value)
    command = caught.value.hint.split("`")[3]
    assert command.startswith(f"glmtune train {run} model={run} ")
    assert all(
        word in command.split() for word in ("train.lr=1.0", "train.seed=7", "method.r=4", "output=NEW")
    )


def test_a_full_disk_keeps_the_last_checkpoint_and_says_how_much_is_missing(
    model: Path, trained: Path, small_disk: Path
) -> None:
    settings, ballast = recipe(model, small_disk / "run"), small_disk / "ballast"
    events = training(settings)
    while not isinstance(next(events), Saved):
        pass
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**15))
    with pytest.raises(OutputError, match=r"No space left on device; .* are free there, and it") as caught:
        drain(events)
    assert "more are needed; step-000002 and what was before it are whole" in str(caught.value)
    assert caught.value.hint.endswith(f"then go on: `glmtune train {small_disk / 'run'} --resume`")
    ballast.unlink()
    resumed(settings)
    assert steps_of(small_disk / "run") == steps_of(trained)
    assert hash_checkpoint(small_disk / "run" / "last") == hash_checkpoint(trained / "last")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_with_another_number_of_processes_the_updates_are_the_same(
    model: Path, tmp_path: Path, first: int, then: int
) -> None:
    """Without dropout: the figures of each step to the rounding of a sum in another order."""
    words = ("method.dropout=0", "train.batch_size=4", "train.save_every=2")
    whole, parts = tmp_path / "whole", tmp_path / "run"
    drain(training(recipe(model, whole, *words)))
    train_words = ("-m", "glmtune", "train", str(tmp_path / "recipe.yaml"))
    short = recipe(model, parts, *words, "train.steps=2")
    (tmp_path / "recipe.yaml").write_text(to_yaml(with_full_paths(short)), encoding="utf-8")
    done = run_ranks(first, *train_words, cwd=tmp_path, text=True)
    assert done.returncode == 0, done.stderr
    done = run_ranks(then, *train_words, "train.steps=4", "--resume", cwd=tmp_path, text=True)
    assert done.returncode == 0, done.stderr
    assert f"saved by {first} process" in done.stdout
    for mine, theirs in zip(steps_of(parts), steps_of(whole), strict=True):
        assert mine["tokens"] == theirs["tokens"]
        for name in ("loss", "grad_norm"):
            assert_close(torch.tensor(mine[name]), torch.tensor(theirs[name]), share=1e-5)


def test_a_disk_that_takes_no_more_writing_is_said_and_changes_nothing(
    model: Path, trained: Path, small_disk: Path
) -> None:
    run = Path(shutil.copytree(trained, small_disk / "run", symlinks=True))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match=r"cannot be written: Read-only file system"):
        resumed(recipe(model, run))
    assert hash_checkpoint(run / "last") == hash_checkpoint(trained / "last")


DISAGREEING = """
import os, sys
from glmtune.cli import main
from glmtune.workflows import checkpoints

listed = checkpoints.list_checkpoints
if os.environ["RANK"] == "1":  # as on a network disk that shows new files late
    checkpoints.list_checkpoints = lambda run: listed(run)[:1]
sys.argv = ["glmtune", "train", sys.argv[1], "train.steps=6", "--resume"]
main()
"""


def test_processes_that_find_other_checkpoints_are_refused(model: Path, run: Path) -> None:
    done = run_ranks(2, "-c", DISAGREEING, str(run), encoding="utf-8")
    assert done.returncode == 2
    assert "not the same newest whole checkpoint for all processes: " in done.stderr
    assert all(f"process {rank} finds step-00000{step}" in done.stderr for rank, step in ((0, 4), (1, 2)))


WAITING = """
import os, time
from glmtune.recipe.distributed import Ddp
from glmtune.training import heartbeat
from glmtune.training.processes import Processes

if os.environ["RANK"] == "1":
    heartbeat.MEETING_POLL_S = 1.5  # the first must not end before this one has looked
processes = Processes(engine=Ddp(timeout_s=2))
for _ in range(2):
    if processes.is_main:
        time.sleep(4)  # a save that takes longer than any exchange may
    processes.wait_for_first()
print(processes.number, flush=True)
heartbeat.end()
"""


def test_a_first_process_that_writes_for_long_is_waited_for() -> None:
    done = run_ranks(2, "-c", WAITING, encoding="utf-8")
    assert (done.returncode, done.stdout.split()[:1]) == (0, ["2"]), done.stderr
