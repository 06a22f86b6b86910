"""`glmtune demo` as typed: seconds of the whole command, and of the steps that it trains.

Each round is a run of its own, from its start to its last line.

    python -m benchmarks.demo
    python -m benchmarks.demo --cap AVX2              # as on an older processor
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Record
from glmtune.run_files import METRICS_FILE, read_json_lines


class Demo:
    """The command in a process of its own; keeps the seconds of its steps."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.steps_s: list[float] = []

    def warm(self) -> None:
        """Needs none: whoever types it has not either."""

    def run(self) -> float:
        """Seconds of the command."""
        shutil.rmtree(self.folder, ignore_errors=True)
        command = [sys.executable, "-m", "glmtune", "demo", "--output", str(self.folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        seconds = measure.seconds_of(
            lambda: subprocess.run(command, env=environment, check=True, capture_output=True)
        )
        [metrics] = self.folder.rglob(METRICS_FILE)
        self.steps_s.append(sum(line["step_s"] for line in read_json_lines(metrics) if "loss" in line))
        return seconds


def main(words: Sequence[str] | None = None) -> Record:
    """Run it; return its record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options = measure.parse(parser, words)
    record = measure.begin("demo", "s", options)
    demo = Demo(options.work / "demo", options.threads)
    record["sides"] = measure.take_turns({"glmtune demo": demo}, options.rounds)
    record["sides"]["its steps"] = demo.steps_s
    return measure.finish(record, "demo", options)


if __name__ == "__main__":
    main()
