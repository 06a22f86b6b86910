"""What a run's folder holds after each thing that can happen to it, without the training."""

from pathlib import Path

import pytest

from glmtune.errors import CheckpointError
from glmtune.recipe import Recipe
from glmtune.run_files import append_json, find_checkpoint, is_partial, read_json_lines
from glmtune.workflows.run_writer import RunWriter


@pytest.fixture
def record(tmp_path: Path) -> RunWriter:
    return RunWriter(tmp_path)


def save(record: RunWriter, *steps: int) -> None:
    for step in steps:
        record.checkpoint_path(step).mkdir(parents=True)


def steps(record: RunWriter) -> list[str]:
    return sorted(path.name for path in (record.folder / "checkpoints").iterdir())


def test_the_newest_checkpoints_are_those_of_the_highest_steps(record: RunWriter) -> None:
    save(record, 5, 999_998, 999_999, 1_000_000)
    record.prune(2, best_step=5)
    assert steps(record) == ["step-000005", "step-1000000", "step-999999"]


def test_what_a_kept_checkpoint_goes_back_with_is_kept(record: RunWriter) -> None:
    """Its best one: the newest may turn out to be damaged, and then it is the one gone back to."""
    losses = [0.1, 3.0, 4.0, 4.0, 2.0, 2.0]  # step 0, untrained, is never the best
    for step, loss in enumerate(losses):
        append_json(record.metrics_path, {"step": step, "eval_loss": loss})
    append_json(record.metrics_path, {"step": 2, "eval_loss": 1.0, "is_settled": False})
    save(record, 1, 2, 3, 4)
    record.prune(2, best_step=4)
    assert steps(record) == ["step-000001", "step-000003", "step-000004"]
    save(record, 5)
    record.prune(2, best_step=4)
    assert steps(record) == ["step-000004", "step-000005"]


def test_the_picture_says_what_was_trained_also_after_a_resume(
    record: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, str] = {}
    monkeypatch.setattr("glmtune.workflows.run_writer.plot_loss", lambda *_, **words: drawn.update(words))
    recipe = Recipe(model="runs/first", method={"name": "lora", "r": 4}, train={"lr": 2e-3})
    record.begin(recipe, {"model": {"name": "THUDM/chatglm3-6b"}}, is_new=False)
    record.draw(1)
    assert drawn["title"] == record.folder.name
    assert drawn["subtitle"] == "chatglm3-6b, lora r=4, learning rate 0.002"


def test_a_kill_between_the_links_leaves_the_best_right(
    record: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(record, 2, 4)
    record.link_checkpoint(2, best_step=2)
    linked: list[str] = []

    def link_once(path: Path, target: Path) -> None:
        if linked:
            raise KeyboardInterrupt
        linked.append(path.name)
        path.unlink()
        path.symlink_to(target)

    monkeypatch.setattr("glmtune.workflows.run_writer.link", link_once)
    with pytest.raises(KeyboardInterrupt):
        record.link_checkpoint(4, best_step=4)
    best, last = (find_checkpoint(record.folder, name) for name in ("best", "last"))
    assert best and last
    assert (best.name, last.name) == ("step-000004", "step-000002")


def test_going_back_sets_links_lines_and_checkpoints_right(record: RunWriter) -> None:
    save(record, 1, 2, 3, 4, 6)
    record.link_checkpoint(4, best_step=6)  # as an earlier version could leave them
    for step in (3, 4, 5, 6):
        append_json(record.metrics_path, {"step": step})
    record.go_back(4, keep=2, best_step=2)
    assert steps(record) == ["step-000002", "step-000003", "step-000004"]
    best, last = (find_checkpoint(record.folder, name) for name in ("best", "last"))
    assert best and last
    assert (best.name, last.name) == ("step-000002", "step-000004")
    assert [line["step"] for line in read_json_lines(record.metrics_path)] == [3, 4]


def test_where_no_checkpoint_is_the_best_yet_there_is_no_link(record: RunWriter) -> None:
    save(record, 1, 2)
    record.link_checkpoint(2, best_step=2)
    record.go_back(1, keep=1, best_step=None)
    assert not (record.folder / "best").is_symlink()
    assert steps(record) == ["step-000001"]


def test_a_best_checkpoint_that_is_gone_is_told(record: RunWriter) -> None:
    save(record, 4)
    record.link_checkpoint(4, best_step=2)
    with pytest.raises(
        CheckpointError, match=r"step-000002: missing, though it is the best so far"
    ) as caught:
        record.go_back(4, keep=1, best_step=2)
    assert caught.value.hint


def test_a_checkpoint_that_was_moved_away_is_unlinked_and_another_file_is_left_alone(
    record: RunWriter, tmp_path: Path
) -> None:
    save(record, 1, 3)
    elsewhere = tmp_path / "elsewhere"
    record.checkpoint_path(1).rename(elsewhere)
    record.checkpoint_path(1).symlink_to(elsewhere)
    record.checkpoint_path(2).touch()
    record.prune(1, best_step=None)
    assert steps(record) == ["step-000002", "step-000003"]
    assert elsewhere.is_dir()


def test_a_checkpoint_that_cannot_be_deleted_ends_no_training(
    record: RunWriter, monkeypatch: pytest.MonkeyPatch, told_lines: list[str]
) -> None:
    def busy(_: Path) -> None:
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr("shutil.rmtree", busy)
    save(record, 1, 2)
    record.prune(1, best_step=None)
    (line,) = told_lines
    assert "step-000001" in line and "Directory not empty" in line
    monkeypatch.undo()
    record.sweep()
    assert steps(record) == ["step-000002"]


def test_a_line_that_cannot_be_read_is_told_before_anything_is_deleted(record: RunWriter) -> None:
    save(record, 1, 2)
    record.metrics_path.write_text("junk\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:1"):
        record.go_back(1, keep=1, best_step=1)
    assert steps(record) == ["step-000001", "step-000002"]


def test_a_checkpoint_is_deleted_whole_or_not_at_all(
    record: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(record, 1, 2)
    (record.checkpoint_path(1) / "state.pt").touch()

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        record.prune(1, best_step=None)
    monkeypatch.undo()
    assert steps(record)[-1] == "step-000002"
    assert [is_partial(path) for path in (record.folder / "checkpoints").iterdir()].count(True) == 1
    record.sweep()
    assert steps(record) == ["step-000002"]
