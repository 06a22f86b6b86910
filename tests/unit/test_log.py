"""As a library glmtune leaves logging and warnings alone, and its lines go where the user wants them."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from forks import run_fork
from glmtune.log import lines_on_stderr, tell, without_false_alarms

STATE = """
import logging, os, sys, warnings

def state():
    loggers = {
        name: (found.level, found.propagate, found.disabled, list(found.handlers))
        for name, found in logging.root.manager.loggerDict.items()
        if isinstance(found, logging.Logger) and not name.startswith("glmtune")
    }
    root = (logging.root.level, list(logging.root.handlers))
    program = (list(warnings.filters), warnings.showwarning, dict(os.environ), sys.excepthook)
    return loggers, (root, logging.root.manager.disable, logging.lastResort.level, program)

def same(before, after):
    assert after[1] == before[1]
    changed = {name for name in before[0] if before[0][name] != after[0][name]}
    assert not changed, changed
    own = logging.getLogger("glmtune")
    assert (own.level, own.handlers, own.propagate) == (logging.NOTSET, [], True)
"""
LOADS = """
import glmtune
model = glmtune.load_model("glm-tiny")
"""
TUNES = """
import glmtune
recipe = {"model": "glm-tiny", "data.train": "examples/adverts.jsonl", "data.max_rows": 4}
recipe |= {"data.holdout_rows": 1, "samples.prompts": [], "train.batch_size": 2, "train.steps": 1}
glmtune.train(recipe, output="run")
glmtune.load_model("run")
glmtune.Adapters("glm-tiny").add("run", "run")
"""


def run(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, encoding="utf-8", check=True
    )


LIBRARIES = "import torch, transformers, accelerate, torch._inductor.compile_fx, matplotlib.pyplot\n"
"""These set up loggers, filters and variables of their own as they are imported."""
ADVISER = "logging.getLogger('bitsandbytes.backends.cpu.ops')\n"


def test_importing_leaves_loggers_filters_and_environment_as_they_are() -> None:
    done = run(f"{STATE}{ADVISER}before = state()\nimport glmtune\nsame(before, state())")
    assert (done.stdout, done.stderr) == ("", "")


def test_using_every_name_leaves_them_and_shows_no_advice_of_other_libraries(tmp_path: Path) -> None:
    names = "import glmtune\nfor name in glmtune.__all__: getattr(glmtune, name)\nsame(before, state())\n"
    done = run(
        f"{STATE}{LIBRARIES}{ADVISER}before = state()\n{names}{LOADS}same(before, state())\n{TUNES}"
        "same(before, state())",
        tmp_path,
    )
    assert "kernels" not in done.stderr


def test_without_configuration_each_line_is_on_stderr_once() -> None:
    done = run(LOADS)
    assert done.stdout == ""
    assert done.stderr.count("glm_tiny: chatglm3") == len(done.stderr.splitlines()) == 1


def test_a_handler_of_the_users_gets_each_line_once_and_nothing_else_prints_it() -> None:
    shape = "stream=sys.stdout, level='INFO', format='%(levelname)s %(name)s %(message)s'"
    code = f"import logging, sys\nlogging.basicConfig({shape})\n{LOADS}"
    done = run_fork([sys.executable, "-c", code], encoding="utf-8", check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("INFO glmtune ")
    assert done.stderr == ""


def test_the_root_loggers_level_holds_where_there_is_a_handler() -> None:
    done = run(
        "import logging, sys; logging.basicConfig(level='WARNING', stream=sys.stdout, format='%(message)s')\n"
        "from glmtune.log import lines_on_stderr, tell\n"
        "tell('a: loaded'); tell('a: warning: odd')\n"
        "with lines_on_stderr(): tell('b: loaded')\n"
        "tell('c: loaded')\n"
        "logging.getLogger('glmtune').setLevel('INFO')\n"
        "tell('d: loaded')"
    )
    assert (done.stdout, done.stderr) == ("a: warning: odd\nd: loaded\n", "b: loaded\n")


def test_a_level_of_the_users_leaves_the_warnings() -> None:
    code = "import logging; logging.getLogger('glmtune').setLevel('WARNING')\nfrom glmtune.log import tell\n"
    done = run(code + "tell('a: opened'); tell('a: warning: odd')")
    assert done.stderr == "a: warning: odd\n"


def test_a_warning_is_a_record_of_that_level(caplog: pytest.LogCaptureFixture) -> None:
    tell("a: opened")
    tell("a: warning: odd")
    assert [record.levelname for record in caplog.records if record.name == "glmtune"] == ["INFO", "WARNING"]


def test_the_command_lines_lines_go_to_stderr_alone_while_it_runs(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with lines_on_stderr():
        tell("a: opened")
    assert capsys.readouterr().err == "a: opened\n"
    assert not caplog.records
    logger = logging.getLogger("glmtune")
    assert (logger.level, logger.handlers, logger.propagate) == (logging.NOTSET, [], True)


def test_a_foreign_logger_is_quiet_only_inside() -> None:
    adviser = logging.getLogger("bitsandbytes.backends.cpu.ops")
    adviser.setLevel(logging.INFO)
    with pytest.raises(ValueError, match="x"), without_false_alarms():
        assert adviser.level == logging.ERROR
        raise ValueError("x")
    assert adviser.level == logging.INFO
    adviser.setLevel(logging.NOTSET)


def test_of_several_processes_the_first_alone_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with lines_on_stderr():
            tell(f"of process {rank}")
    assert capsys.readouterr().err == "of process 0\n"
