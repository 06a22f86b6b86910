"""Processor time of the tests, by folder and by test: a pytest plugin that leaves one file a process, and their sum.

    OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist loadfile -p tools.test_cost -m "not slow and not gpu and not weights and not browser"
    python -m tools.test_cost

Children count once they are waited for. Fixtures of a session count for the test that asked first.
"""

import json
import os
import resource
import sys
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("TEST_COST", "build/test_cost"))
_start = 0.0
_spent: Counter[str] = Counter()


def _seconds() -> float:
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    before = _seconds()
    try:
        return (yield)
    finally:
        _spent[item.nodeid] += _seconds() - before


def pytest_sessionfinish() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    told = {"all": _seconds(), "tests": _spent}
    (FOLDER / f"{os.getpid()}.json").write_text(json.dumps(told))


def main() -> None:
    depth = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    files = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    tests: Counter[str] = Counter()
    for file in files:
        tests.update(file["tests"])
    rooms: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for name, seconds in tests.items():
        path = name.split("::")[0].split("/")
        room = "/".join(path[: depth + 1]) if depth else name
        room = "/".join(path[:-1][:depth]) if depth < 3 else path[0] and "/".join(path)
        rooms[room] += seconds
        counts[room] += 1
    for room, seconds in rooms.most_common():
        print(f"{seconds:8.1f} s  {counts[room]:5d} tests  {room}")
    print(f"{sum(tests.values()):8.1f} s  {len(tests):5d} tests;  {sum(f['all'] for f in files):.1f} s with imports and collection")


if __name__ == "__main__":
    main()
