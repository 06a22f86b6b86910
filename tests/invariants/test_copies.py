"""A run whose checkpoints are copied to a URL goes on from there, on another machine, to the same bits."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from forks import run_ranks
from glmtune.errors import ConfigError
from glmtune.recipe import Recipe, load_recipe
from glmtune.run_files import list_checkpoints, read_json_lines, step_of
from glmtune.workflows.copies import CopyFolder
from glmtune.workflows.events import Event, Note, Saved, drain
from glmtune.workflows.execute import training
from killed import TIMES
from models import tiny_folder
from resumed import assert_same_weights

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
URL = "memory://copies"


@pytest.fixture(autouse=True)
def _empty_memory() -> Iterator[None]:
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), hidden_size=16, ffn_hidden_size=32)


def words(model: Path, output: Path, *more: str) -> list[str]:
    return [
        f"model={model}", f"output={output}", f"data.train={ADVERTS}", "data.max_tokens=200",
        "data.max_rows=12", "data.holdout_rows=2", "train.steps=6", "train.batch_size=2", "train.lr=3e-2",
        "train.eval_every=2", "train.keep_checkpoints=1", "samples.prompts=[]", "retain.report=off",
        "retain.ratio=0", *more,
    ]  # fmt: skip


def recipe(model: Path, output: Path, *more: str) -> Recipe:
    return load_recipe({}, words(model, output, *more))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts, with dropout."""
    run = tmp_path_factory.mktemp("whole") / "run"
    drain(training(recipe(model, run)))
    return run


def stop_after(settings: Recipe, step: int) -> list[str]:
    """Train until the checkpoint of a step is copied; return the notes."""
    run, notes, is_saved = training(settings), list[str](), False
    for event in run:
        is_saved = is_saved or (isinstance(event, Saved) and step_of(event.path) == step)
        if isinstance(event, Note):
            notes.append(event.text)
            if is_saved:
                break
    run.close()
    return notes


def resumed(settings: Recipe) -> list[str]:
    events: list[Event] = []
    drain(training(settings, resume=True), events.append)
    return [event.text for event in events if isinstance(event, Note)]


def steps_of(run: Path) -> list[dict[str, object]]:
    lines = read_json_lines(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.mark.parametrize("worst", ["3e-2", "0"], ids=["the newest is the best", "the best is an older one"])
def test_a_run_whose_machine_is_gone_goes_on_from_the_copies_to_the_same_bits(
    model: Path, tmp_path: Path, worst: str
) -> None:
    lr, run = f"train.lr={worst}", tmp_path / "run"
    drain(training(recipe(model, tmp_path / "whole", lr)))
    settings = recipe(model, run, lr, f"train.copy_to={URL}")
    assert f"copied to {URL}/step-000004-1" in stop_after(settings, 4)
    shutil.rmtree(run)
    notes = resumed(settings)
    assert f"fetched {URL}/step-000004-1" in notes
    assert (f"fetched {URL}/step-000002-1" in notes) is (worst == "0")
    assert any(note.startswith("resumed from step-000004") for note in notes)
    assert_same_weights(run, tmp_path / "whole")
    assert steps_of(run) == steps_of(tmp_path / "whole")
    assert [path.name for path in list_checkpoints(run)] == [
        path.name for path in list_checkpoints(tmp_path / "whole")
    ]


def test_a_run_that_has_its_checkpoints_fetches_none(model: Path, tmp_path: Path, whole: Path) -> None:
    settings = recipe(model, tmp_path / "run", f"train.copy_to={URL}")
    stop_after(settings, 4)
    assert not any(note.startswith("fetched") for note in resumed(settings))
    assert_same_weights(tmp_path / "run", whole)


def test_a_checkpoint_that_is_damaged_here_is_fetched_and_one_damaged_there_skipped(
    model: Path, tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    settings = recipe(model, run, f"train.copy_to={URL}", "train.keep_checkpoints=2")
    stop_after(settings, 4)
    kept = shutil.copytree(run, tmp_path / "kept", symlinks=True)
    (run / "checkpoints" / "step-000004" / "state.pt").write_bytes(b"gone")
    notes = resumed(settings)
    assert f"fetched {URL}/step-000004-1" in notes
    assert (run / "checkpoints" / "damaged-step-000004").is_dir()
    assert_same_weights(run, whole)

    for step in (4, 6):  # damaged there, and lost here: the run goes on from step 2, which is here
        path = f"/copies/step-00000{step}-1/state.pt"
        if path in MemoryFileSystem.store:
            MemoryFileSystem().pipe_file(path, b"gone")
    shutil.rmtree(run)
    shutil.copytree(kept, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step-000004")
    notes = resumed(settings)
    skipped = [note for note in notes if "is skipped" in note]
    assert [note.split(" ")[0] for note in skipped] == ["step-000006-1", "step-000004-1"]
    assert all("state.pt: is not as it was written" in note for note in skipped)
    assert any(note.startswith("resumed from step-000002") for note in notes)
    assert_same_weights(run, whole)
    assert [str(copy) for copy in CopyFolder(URL).copies()] == ["step-000004-2", "step-000006-1"]
    assert all(file.getvalue() != b"gone" for file in MemoryFileSystem.store.values())


def test_a_copy_that_fails_is_told_loses_nothing_and_is_made_with_the_next(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, whole: Path
) -> None:
    run, puts, real = tmp_path / "run", [], MemoryFileSystem.put_file

    def put(self: MemoryFileSystem, path: str, target: str) -> None:
        puts.append(target)
        if len(puts) == 3:  # in the middle of the first copy
            raise ValueError("no route to host")
        real(self, path, target)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    events: list[Event] = []
    drain(training(recipe(model, run, f"train.copy_to={URL}", "train.keep_checkpoints=3")), events.append)
    notes = [event for event in events if isinstance(event, Note)]
    [told] = [note.text for note in notes if note.is_warning and URL in note.text]
    assert told == (
        f"{URL}: step-000002-1 cannot be written: ValueError: no route to host; nothing is lost: {run} has "
        "it, and the next checkpoint tries again"
    )
    assert_same_weights(run, whole)
    copies = [str(copy) for copy in CopyFolder(URL).copies()]
    assert copies == ["step-000002-2", "step-000004-1", "step-000006-1"]


def test_the_report_of_a_finished_run_lies_beside_its_copies(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    drain(training(recipe(model, run, f"train.copy_to={URL}")))
    copied = {
        name.removeprefix("/copies/"): file.getvalue()
        for name, file in MemoryFileSystem.store.items()
        if name.count("/") == 2
    }
    assert copied.keys() >= {"report.html", "eval.json", "metrics.jsonl", "recipe.yaml", "loss.png"}
    assert copied == {name: (run / name).read_bytes() for name in copied}


def test_copies_of_another_run_are_never_taken_nor_replaced(model: Path, tmp_path: Path) -> None:
    one, other = (recipe(model, tmp_path / name, f"train.copy_to={URL}") for name in ("one", "other"))
    stop_after(one, 4)
    before = dict(MemoryFileSystem.store)
    with pytest.raises(ConfigError, match=r"train\.copy_to: memory://copies: has the checkpoints of a run"):
        drain(training(other))
    stop_after(recipe(model, tmp_path / "other"), 2)
    with pytest.raises(ConfigError, match=r"has checkpoints, and .* has not been copied there"):
        drain(training(other, resume=True))
    assert MemoryFileSystem.store == before


def test_of_two_processes_one_copies_and_fetches(model: Path, tmp_path: Path) -> None:
    def train(name: str, *more: str) -> str:
        given = words(model, tmp_path / name, "method.dropout=0", *more)
        done = run_ranks(2, "-m", "glmtune", "train", *given, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    train("whole")
    url = f"file://{tmp_path}/copies"
    train("run", f"train.copy_to={url}")
    folders = [path.name for path in (tmp_path / "copies").iterdir() if path.is_dir()]
    assert folders == ["step-000006-1"]
    shutil.rmtree(tmp_path / "run")
    told = train("run", f"train.copy_to={url}", "--resume")
    assert f"fetched {url}/step-000006-1" in told
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
