"""`glmtune compare` on runs that were really trained."""

import json
import shutil
from pathlib import Path

import pytest
from rich.cells import cell_len

from commands import glmtune

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = {"甲": ["method=lora", "train.steps=4"], "full": ["method=full", "train.steps=3", "train.lr=1e-3"]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of glm-tiny, one of them evaluated."""
    folder = tmp_path_factory.mktemp("work")
    for name, words in RUNS.items():
        done = glmtune(
            "train", "model=glm-tiny", f"data.train={EXAMPLES / 'adverts.jsonl'}", "data.max_rows=8",
            "data.holdout_rows=2", "train.batch_size=2", "train.eval_every=1", "dtype=fp32",
            'samples.prompts=["类型#裙*颜色#蓝色"]', "samples.max_new_tokens=8", f"output={name}", *words,
            cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    words = ("evaluate", "甲", "evaluate.max_rows=1", "evaluate.max_new_tokens=2")
    assert glmtune(*words, cwd=folder).returncode == 0
    return folder


def test_a_run_records_how_much_it_trains_of_how_much(work: Path) -> None:
    lora, full = (json.loads((work / name / "env.json").read_text(encoding="utf-8")) for name in RUNS)
    assert (lora["trainable_parameters"], lora["all_parameters"]) == (24_576, 3_608_832 + 24_576)
    assert (full["trainable_parameters"], full["all_parameters"]) == (3_608_832, 3_608_832)


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("colour", [False, True])
def test_two_runs_stand_side_by_side_at_any_width(
    work: Path, tmp_path: Path, width: int, colour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR" if colour else "NO_COLOR", "1")
    done = glmtune("compare", "甲", "full", "--output", tmp_path / "out", cwd=work)
    assert done.returncode == 0, done.stderr
    assert ("\x1b[" in done.stdout) is colour
    if not colour:
        table = [line for line in done.stdout.splitlines() if line.startswith(("┃", "│", "├", "└"))]
        widths = {cell_len(line) for line in table}
        assert max(widths) <= width
        assert len(widths) <= 2  # all lines of a table are equally wide, Chinese ones too
        cells = ("24,576 (0.676 %)", "3,608,832 (100 %)", "rouge-l", " of 100", "train.lr", "0.001", "甲")
        for cell in cells:
            assert any(cell in line for line in table), cell
        assert "full reaches 甲's best evaluation loss" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.json", "compare.png"}


def test_the_names_of_settings_are_wrapped_and_never_cut(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / ("a-folder-with-a-long-name" * 2)
    shutil.copytree(work / "full", other, symlinks=True)
    recipe = (other / "recipe.yaml").read_text(encoding="utf-8")
    changed = recipe.replace("checkpointing: true", "checkpointing: false")
    changed = changed.replace("max_validation_rows: null", "max_validation_rows: 2")
    (other / "recipe.yaml").write_text(changed, encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "60")
    done = glmtune("compare", "full", other, "--output", tmp_path / "out", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout
    cells = [line.split("│")[1].strip() for line in done.stdout.splitlines() if line.startswith("│")]
    assert "data.max_validation_rows" in "".join(cells)
    assert "best evaluation loss (" not in done.stdout  # neither is ahead: the runs are equal


def test_a_second_comparison_leaves_the_first_alone(work: Path) -> None:
    for name in ("compare", "compare-2"):
        done = glmtune("compare", "甲", "full", "--at", 2, cwd=work)
        assert f"picture: {Path('runs', name, 'compare.png')}" in done.stdout
        assert "loss at step 2" in done.stdout
        written = json.loads((work / "runs" / name / "compare.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (work / "甲" / "metrics.jsonl").open(encoding="utf-8")]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert written["runs"][0]["losses"] == {"2": pytest.approx(sum(losses[:2]) / 2)}


def test_many_runs_take_several_tables(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    done = glmtune("compare", "甲", "full", "--output", tmp_path / "out", cwd=work)
    assert done.stdout.count("trainable") == 2
    assert all(cell_len(line) <= 50 for line in done.stdout.splitlines() if line.startswith(("│", "└")))


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["甲"], "1 run named", "two or more"),
        (["甲", "甲/last"], "last: no run: it has no recipe.yaml", "runs/..."),
        (["甲", "full", "--output", "full"], "full: this folder is not empty", "--output"),
    ],
)
def test_what_cannot_be_compared_ends_in_an_error_and_a_hint(
    work: Path, words: list[str], message: str, hint: str
) -> None:
    done = glmtune("compare", *words, cwd=work)
    assert done.returncode == 2
    error, said = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert said.startswith("hint: ")
    assert hint in said
