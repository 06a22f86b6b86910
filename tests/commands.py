"""Running the command line, in this process or in one of its own."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from glmtune.cli import main


@dataclass
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def glmtune(*words: object, cwd: Path, typed: str = "") -> Done:
    """Run the command line in this process: starting one for each command would take seconds."""
    out, err, before = io.StringIO(), io.StringIO(), (Path.cwd(), sys.argv, sys.stdin)
    os.chdir(cwd)
    sys.argv, sys.stdin = ["glmtune", *map(str, words)], io.StringIO(typed)
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os.chdir(before[0])
        sys.argv, sys.stdin = before[1:]
    return Done(code, out.getvalue(), err.getvalue())


def glmtune_process(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user's shell does."""
    return subprocess.run(
        [sys.executable, "-m", "glmtune", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
