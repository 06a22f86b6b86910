"""`glmtune chat glm-tiny` from the command to its first token: a fresh process, seconds.

Before a cold start the kernel is asked to forget the files of the Python packages; what other processes use
it keeps, so stop them first.

    python -m benchmarks.chat
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Record

COMMAND = (
    "-m", "glmtune", "chat", "glm-tiny", "--rounds", "1", "--temperature", "0", "--max-new-tokens", "4",
)  # fmt: skip
QUESTION = "你好\n"
BEFORE = "|>: "
"""Printed when the answer begins."""


class Starting:
    """A side whose figure is seconds to the first token."""

    def __init__(self, *, is_cold: bool) -> None:
        self.is_cold = is_cold

    def warm(self) -> None:
        """Compile what Python compiles once."""
        start_chat()

    def run(self) -> float:
        """Seconds."""
        if self.is_cold:
            forget_files(Path(sysconfig.get_path("purelib")))
        return start_chat()


def start_chat() -> float:
    """Seconds from the start of the process to the first character of its answer."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, *COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as chat:
        assert chat.stdin
        assert chat.stdout
        chat.stdin.write(f"{QUESTION}stop\n".encode())
        chat.stdin.close()
        said = b""
        while BEFORE.encode() not in said or said.endswith(BEFORE.encode()):
            letter = chat.stdout.read(1)
            if not letter:
                raise SystemExit(f"the chat ended without an answer: {said.decode()}")
            said += letter
        took = time.perf_counter() - start
        chat.stdout.read()
    return took


def forget_files(folder: Path) -> None:
    """Ask the kernel to drop the cached pages of all files below a folder."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(words: Sequence[str] | None = None) -> Record:
    """Cold and warm starts in turn; return the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options = measure.parse(parser, words)
    sides = {"cold": Starting(is_cold=True), "warm": Starting(is_cold=False)}
    found = measure.take_turns(sides, options.rounds)
    record = measure.begin("chat", "s", options)  # not before: torch here would keep its files in memory
    record["sides"] = found
    return measure.finish(record, "chat", options)


if __name__ == "__main__":
    main()
