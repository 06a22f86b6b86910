"""Processor time of the tests, by folder, file or test.

A pytest plugin writes a file for each process of a run:

    OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist loadfile -p tools.test_cost -m "not slow and not gpu"

`python -m tools.test_cost` prints their sums by folder; with `files` or `tests`, by file or by test. The
files lie in build/test_cost, or where the variable TEST_COST says; delete them before the next run. A fixture
that several tests share counts for the first of them. A child process counts while it lives and after.
"""

import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("TEST_COST", "build/test_cost"))
_seconds_of: Counter[str] = Counter()


def _seconds() -> float:
    """Processor time of this process and its children so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + _seconds_of_living_children()


def _seconds_of_living_children() -> float:
    """Processor time of children, which RUSAGE_CHILDREN has only after they end; 0 outside Linux."""
    ticks = 0
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
                stat = Path(f"/proc/{child}/stat").read_text()
                ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))  # utime stime cutime cstime
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Add what a test, its setup and its teardown take."""
    before = _seconds()
    try:
        return (yield)
    finally:
        _seconds_of[item.nodeid] += _seconds() - before


def pytest_sessionfinish() -> None:
    """Write the file of this process."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    process = {"all": _seconds(), "tests": _seconds_of}
    (FOLDER / f"{os.getpid()}.json").write_text(json.dumps(process))


def main(by: str = "folders") -> None:
    """Print the sums, the largest first."""
    processes = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    seconds: Counter[str] = Counter()
    num_tests: Counter[str] = Counter()
    for process in processes:
        for test, spent in process["tests"].items():
            file = test.partition("::")[0]
            group = {"folders": str(Path(*Path(file).parent.parts[:2])), "files": file, "tests": test}[by]
            seconds[group] += spent
            num_tests[group] += 1
    for group, spent in seconds.most_common():
        print(f"{spent:8.1f} s  {num_tests[group]:5d} tests  {group}")
    print(f"{seconds.total():8.1f} s  {num_tests.total():5d} tests")
    if processes:  # the first process of several counts the others as its children
        print(f"{max(process['all'] for process in processes):8.1f} s  with imports and collection")


if __name__ == "__main__":
    main(*sys.argv[1:])
