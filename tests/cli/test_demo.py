"""`glmtune demo`: it shows what was learned, and says so where it was not."""

from pathlib import Path

import pytest

from commands import glmtune
from glmtune.cli.console import program
from glmtune.workflows import demo


@pytest.mark.slow
def test_a_demo_that_learned_too_little_fails_and_says_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(demo.SETTINGS, "train", {"steps": 1, "batch_size": 2, "micro_batch_size": 2})
    (tmp_path / "runs" / "demo" / "mine").mkdir(parents=True)
    done = glmtune("demo", "--name", "小明", "--author", '明"明', cwd=tmp_path)
    assert done.returncode == 1
    assert "identity questions answered with the new name and author: 0%, expected 90%" in done.stderr
    assert "the loss of the held-out adverts fell by" in done.stderr
    folder = tmp_path / "runs" / "demo-2"  # what was in runs/demo is left alone
    assert '我是小明，由明\\"明训练的智能助手。' in (folder / "data" / "train.jsonl").read_text("utf-8")
    for path in ("lora/loss.png", "lora/best", "before/talks/scores.json", "after/adverts/scores.json"):
        assert (folder / path).exists(), path
        assert Path(path).parts[0] in done.stdout
    assert "GLM-Tiny" in done.stdout
    assert "glmtune chat runs/demo-2/lora" in done.stdout


def test_no_name_and_a_folder_in_use_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    for words, what in ((("--name", " "), "--name: empty"), (("--output", "."), "not empty")):
        done = glmtune("demo", *words, cwd=tmp_path)
        assert done.returncode == 2
        assert what in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "author"), [("小橙", "橙子工作室"), ("小明", "明明科技")])
def test_the_demo_learns_the_name_the_adverts_and_the_talks(name: str, author: str, tmp_path: Path) -> None:
    done = glmtune("demo", "--name", name, "--author", author, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("before and after")[2]
    assert f"我是{name}" in table.replace("\n", "")


@pytest.mark.parametrize(
    ("called", "is_found", "typed"),
    [
        ("/here/.venv/bin/glmtune", True, "glmtune"),
        (".venv/bin/glmtune", False, ".venv/bin/glmtune"),
        ("/there/glmtune/__main__.py", True, "python -m glmtune"),
    ],
)
def test_what_to_type_next_can_be_typed(
    called: str, is_found: bool, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [called])
    monkeypatch.setattr("shutil.which", lambda name: name if is_found else None)
    assert program() == typed
