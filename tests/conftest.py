"""Where the reference data lies, and skipping, visibly, where it does not."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from hypothesis import HealthCheck, settings

from glmtune.cli import hints as spoken_hints
from glmtune.errors import GlmtuneError
from glmtune.log import told_to
from glmtune.recipe import retain
from glmtune.reports import memory_picture, plots, rank_map
from glmtune.run_files import REPORT_FILE, replacing
from glmtune.workflows import before_after, forgetting, reporting

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("GLMTUNE_SHARED", ROOT.parent / "shared"))

# machines are shared: how long an example takes says nothing about the code
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("shared"))  # see fuzz.examples; make test-all
settings.load_profile("shared")


def pytest_collection() -> None:
    """Nothing that is imported or collected is garbage: looking for some takes a quarter of that time."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (SHARED / "goldens").is_dir():
        skip = pytest.mark.skip(reason="needs the reference data in ../shared (or $GLMTUNE_SHARED)")
        for item in items:
            if "shared" in item.keywords:
                item.add_marker(skip)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Answers of bases are kept for the other tests, and not where the user's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLMTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


REPLAYING = ("tests/unit/workflows/test_replay.py", "tests/invariants/test_replay.py")
"""Tests of runs with the default replay; the others' runs have none unless they ask for it."""


@pytest.fixture(scope="session", autouse=True)
def _no_replay() -> Iterator[float]:
    """Have runs replay nothing unless they ask for it, those of fixtures too; gives the real default."""
    real = retain.DEFAULT_RATIO
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retain, "DEFAULT_RATIO", 0.0)
        yield real


@pytest.fixture(autouse=True)
def _replay(request: pytest.FixtureRequest, _no_replay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.nodeid.startswith(REPLAYING):
        monkeypatch.setattr(retain, "DEFAULT_RATIO", _no_replay)


@pytest.fixture
def told_lines() -> Iterator[list[str]]:
    """The lines that glmtune tells in a test; nobody else hears them."""
    lines: list[str] = []
    with told_to(lines.append):
        yield lines


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    """accelerate keeps the precision of a program's first run for all later ones."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state()


BLANK = b"\x89PNG\r\n\x1a\n" + bytes(2000)
PICTURED = (
    "tests/cli/test_methods.py", "tests/cli/test_compare.py", "tests/cli/test_demo.py", "tests/unit/report/",
    "tests/unit/workflows/", "tests/unit/test_fuzz_files.py", "tests/cli/test_report.py",
    "tests/invariants/test_low_rank_runs.py::test_loss_falls_on_every_kind_of_model",
)  # fmt: skip
"""Tests whose runs draw their pictures, which is a third of the cost of a tiny run."""


PICTURES = ((plots, "draw_loss"), (memory_picture, "draw_memory"), (rank_map, "draw_ranks"))
DRAWN = (
    *((module, name) for module, draw in PICTURES for name in (draw, "save")),
    (reporting, "write_report"),
)


@pytest.fixture(scope="session", autouse=True)
def _real_drawing() -> Iterator[list[tuple[object, str, object]]]:
    """Have runs write blank pictures, as files are written; gives what draws real ones."""
    real = [(module, name, getattr(module, name)) for module, name in DRAWN]
    with pytest.MonkeyPatch.context() as patch:
        for module, name in DRAWN:
            patch.setattr(module, name, BLANKS.get(name, _draw_nothing))
        yield real


@pytest.fixture(autouse=True)
def _real_pictures(
    request: pytest.FixtureRequest,
    _real_drawing: list[tuple[object, str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if request.node.nodeid.startswith(PICTURED):
        for module, name, function in _real_drawing:
            monkeypatch.setattr(module, name, function)


ASKED = ("tests/cli/test_demo.py", "tests/unit/workflows/test_before_after.py")
"""Tests whose runs ask the built-in questions, which takes longer than a tiny run."""


@pytest.fixture(scope="session", autouse=True)
def _no_built_in_questions() -> Iterator[tuple[before_after.SampleQuestion, ...]]:
    """Have runs ask no built-in questions, those of fixtures too; gives the questions."""
    questions = before_after.QUESTIONS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(before_after, "QUESTIONS", ())
        yield questions


@pytest.fixture(autouse=True)
def _built_in_questions(
    request: pytest.FixtureRequest,
    _no_built_in_questions: tuple[before_after.SampleQuestion, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if request.node.nodeid.startswith(ASKED):
        monkeypatch.setattr(before_after, "QUESTIONS", _no_built_in_questions)


REPORTED = (
    "tests/invariants/test_retention.py",
    "tests/cli/test_forgetting.py",
    "tests/test_forgetting_tables.py",
)
"""Tests whose runs end with the report of forgetting, which costs as much as a tiny run."""


@pytest.fixture(scope="session", autouse=True)
def _real_report() -> Iterator[object]:
    """Have runs in this process end without the report, as retain.report=off does; gives the real choice."""
    real = forgetting.is_reported
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "is_reported", lambda _: False)
        yield real


@pytest.fixture(autouse=True)
def _reported(request: pytest.FixtureRequest, _real_report: object, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.nodeid.startswith(REPORTED):
        monkeypatch.setattr(forgetting, "is_reported", _real_report)


def _draw_nothing(*_: object, **__: object) -> None:
    pass


def _save_blank(_: object, path: Path) -> None:
    with replacing(path) as partial:
        partial.write_bytes(BLANK)


def _write_blank(runs: list[Path]) -> Path:
    path = runs[0] / REPORT_FILE
    path.touch()
    return path


BLANKS = {"save": _save_blank, "write_report": _write_blank}


@pytest.fixture
def warm_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove exports in forks of a process that has loaded torch, see `forks`."""
    from forks import run_fork
    from glmtune.exports import verify

    monkeypatch.setattr(verify, "subprocess", SimpleNamespace(run=run_fork))


_met: dict[str, list[str]] = {}
"""Each hint that a test has met, and what in it leads nowhere; taken out once it is told."""


@pytest.fixture(autouse=True)
def _each_hint_leads_somewhere(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that met a hint which leads nowhere; what is made at random names anything."""
    yield
    problems = {hint: problems for hint, problems in _met.items() if problems}
    for hint in problems:
        _met[hint] = []
    assert not problems or "fuzz" in request.node.name or "fuzz" in request.path.name, problems


def _follow_hints() -> None:
    """Have every error of ours follow its hint as it is made, and the command line what it makes of it."""
    make, say = GlmtuneError.__init__, spoken_hints.name_options

    def made(self: GlmtuneError, message: str, *, hint: str = "") -> None:
        make(self, message, hint=hint)
        if hint and hint not in _met:
            from hints import follow

            _met[hint] = []
            _met[hint] = follow(hint)

    def said(hint: str, command: click.Command) -> str:
        from hints import unspoken

        text = say(hint, command)
        _met.setdefault(f"{command.name}: {text}", unspoken(text, command))
        return text

    GlmtuneError.__init__ = made  # type: ignore[method-assign]
    spoken_hints.name_options = said


_follow_hints()
