"""A run that is killed goes on to what it would have been: its last and best, its lines, and no more."""

import json
import sys
from pathlib import Path

import pytest

from forks import run_fork

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_files_and_leaves_nothing_behind(tmp_path: Path, kills: int) -> None:
    command = [sys.executable, str(TESTS / "killed.py"), str(tmp_path), "5", str(kills)]
    done = run_fork(command, encoding="utf-8", timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line in found if line["odd"]] == []
    assert len(found) == kills
    assert kills < 100 or any(line["leftover"] for line in found)  # there was something to sweep away


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_nobody_had(tmp_path: Path) -> None:
    """A sample of `python -m tests.crash`."""
    command = [sys.executable, str(TESTS / "crash.py"), "--kills", "20"]
    done = run_fork(command, cwd=tmp_path, encoding="utf-8", timeout=1800)
    found = json.loads(done.stdout)
    assert found["odd"] == []
    assert done.returncode == 0, done.stderr[-2000:]
    assert found["kills"] == 20
    assert len(found["methods"]) == 4
