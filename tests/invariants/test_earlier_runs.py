"""What an earlier version wrote opens, verifies, resumes, compares and is evaluated as if written today."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from closeness import assert_close
from commands import glmtune as run_verb
from glmtune import compare, evaluate, load_model, train, verify
from glmtune.recipe import load_recipe
from glmtune.run_files import read_json_lines

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
METHODS = ("lora", "adalora", "ptuning", "freeze")
EXPECTED = json.loads((EARLIER / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the runs, as a user has them: writable, in the working directory."""
    shutil.copytree(EARLIER, tmp_path / "earlier", symlinks=True)
    monkeypatch.chdir(tmp_path / "earlier")
    return tmp_path / "earlier" / "runs"


@pytest.mark.parametrize("method", METHODS)
def test_an_earlier_run_is_proven(method: str) -> None:
    checks = verify(EARLIER / "runs" / method, quiet=True)
    assert checks and all(check.is_proven for check in checks)


def test_an_earlier_export_is_proven() -> None:
    assert verify(EARLIER / "exports" / "adalora", quiet=True)


@pytest.mark.parametrize("method", METHODS)
def test_an_earlier_recipe_is_one_of_today(method: str) -> None:
    recipe = load_recipe(EARLIER / "runs" / method / "recipe.yaml")
    assert (recipe.method.name, recipe.train.steps) == (method, 4)


def test_an_earlier_run_is_told_of(runs: Path) -> None:
    done = run_verb("info", runs / "adalora", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert "adalora" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_an_earlier_run_goes_on_to_what_it_would_have_become(method: str, runs: Path) -> None:
    train(runs / method, resume=True, quiet=True)
    made = read_json_lines(runs / method / "metrics.jsonl")
    for line, expected in zip(made, EXPECTED[method], strict=True):
        assert_close([float(line[name]) for name in expected], [float(value) for value in expected.values()])
    assert verify(runs / method, quiet=True)


@pytest.mark.slow
def test_earlier_runs_are_compared_and_evaluated(runs: Path) -> None:
    side = compare([runs / method for method in METHODS], quiet=True)
    assert [run.name for run in side.runs] == list(METHODS)
    for method in METHODS:
        done = evaluate(
            {"model": str(runs / method), "data.max_test_rows": 2, "evaluate.max_new_tokens": 4}, quiet=True
        )
        assert done.scores["num_rows"] == 2


@pytest.mark.slow
def test_an_earlier_export_is_the_run_as_lora(runs: Path) -> None:
    """The export was made of the finished run, which this one becomes."""
    train(runs / "adalora", resume=True, quiet=True)
    ids = torch.tensor([[2808, 2810, 2813, 892, 13, 297]])
    with torch.no_grad():
        both = [load_model(path)(input_ids=ids).logits for path in (runs / "adalora/last", "exports/adalora")]
    assert_close(both[1], both[0])
