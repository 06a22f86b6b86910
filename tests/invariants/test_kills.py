"""A run that is killed goes on to what it would have been: its last and best, its lines, and no more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_files_and_leaves_nothing_behind(tmp_path: Path, kills: int) -> None:
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, TESTS / "killed.py", tmp_path, "5", str(kills)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, encoding="utf-8", timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line in found if line["odd"]] == []
    assert len(found) == kills
    assert kills < 100 or any(line["leftover"] for line in found)  # there was something to sweep away
