"""A run in the background: what its process.json says of it, and what becomes of it."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from commands import glmtune
from glmtune.errors import CheckpointError, ConfigError, TrainingError
from glmtune.recipe import load_recipe
from glmtune.reports.listing import summarise_runs
from glmtune.run_files import LOG_FILE, PROCESS_FILE, append_json, write_json
from glmtune.run_process import (
    SIGN_S,
    SILENT_S,
    ProcessRecord,
    Recording,
    alone_in,
    birth_mark,
    read_record,
    record_process,
    require_idle,
    write_record,
)
from glmtune.training.stopping import Interrupted, terminable
from glmtune.web.words import Words
from glmtune.workflows import train
from glmtune.workflows.events import drain
from glmtune.workflows.execute import training
from glmtune.workflows.runner import find_live, follow_log, log_of, start, state_of, stop, wait_for_end
from models import tiny_folder

ADVERTS = Path(__file__).parents[3] / "examples" / "adverts.jsonl"
SMALL = (
    f"data.train={ADVERTS}", "data.max_rows=12", "data.holdout_rows=2", "train.batch_size=2",
    "train.eval_every=1000", "samples.prompts=[]", "samples.built_in=false", "retain.report=off",
    "data.max_tokens=400", "retain.ratio=0", "train.micro_batch_size=2", "train.gradient_checkpointing=false",
)  # fmt: skip


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does nothing, and ends when it is asked to."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def record(tmp_path: Path, sleeper: "subprocess.Popen[bytes]") -> ProcessRecord:
    """Its record as that of a run in a folder, which has made 3 of 10 steps in 2 s each."""
    record = replace(record_process(sleeper.pid, command="glmtune train"), phase="training", steps=10)
    write_record(tmp_path, record)
    append_json(tmp_path / "metrics.jsonl", {"step": 0, "eval_loss": 8.0})
    for step in (1, 2, 3):
        append_json(tmp_path / "metrics.jsonl", {"step": step, "loss": 7.0 - step, "step_s": 2.0})
    return record


def test_a_running_run_tells_its_step_its_losses_and_the_time_left(
    tmp_path: Path, record: ProcessRecord
) -> None:
    (tmp_path / LOG_FILE).write_text("first\nlast\n\nhalf a li")
    state = state_of(tmp_path)
    assert (state.state, state.pid, state.step, state.steps) == ("running", record.pid, 3, 10)
    assert (state.loss, state.eval_loss, state.eta_s, state.share) == (4.0, 8.0, 14.0, 0.3)
    assert state.last_line == "last"


def test_a_process_that_was_killed_makes_a_killed_run(
    tmp_path: Path, record: ProcessRecord, sleeper: "subprocess.Popen[bytes]"
) -> None:
    assert record.is_alive
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert state_of(tmp_path).state == "killed"  # its parent has not looked after it yet
    sleeper.wait()
    assert state_of(tmp_path).state == "killed"
    done = glmtune("status", tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert "gone without a word" in done.stdout


def test_another_process_with_the_same_number_is_not_the_run(tmp_path: Path, record: ProcessRecord) -> None:
    other = birth_mark(psutil.Process(os.getpid()))
    assert other != record.birth
    write_record(tmp_path, replace(record, pid=os.getpid()))
    assert state_of(tmp_path).state == "killed"
    before_a_reboot = record.birth.replace(record.birth.split()[0], "another-boot")
    write_record(tmp_path, replace(record, birth=before_a_reboot))
    assert state_of(tmp_path).state == "killed"


def test_of_a_process_on_another_machine_nothing_is_known(tmp_path: Path, record: ProcessRecord) -> None:
    write_record(tmp_path, replace(record, host=f"not-{platform.node()}"))
    assert state_of(tmp_path).state == "unknown"
    with pytest.raises(ConfigError, match="unknown; there is no process to stop"):
        stop(tmp_path)


def test_a_stop_reaches_the_process_and_is_told_from_a_kill(
    tmp_path: Path, record: ProcessRecord, sleeper: "subprocess.Popen[bytes]"
) -> None:
    stop(tmp_path)
    assert sleeper.wait(timeout=60) == -signal.SIGTERM
    assert wait_for_end(tmp_path).state == "stopped"
    with pytest.raises(ConfigError, match="stopped; there is no process to stop"):
        stop(tmp_path)


def test_a_stop_at_once_is_a_kill_that_was_asked_for(
    tmp_path: Path, record: ProcessRecord, sleeper: "subprocess.Popen[bytes]"
) -> None:
    stop(tmp_path, at_once=True)
    assert sleeper.wait(timeout=60) == -signal.SIGKILL
    assert state_of(tmp_path).state == "stopped"


def test_the_program_of_a_user_is_not_stopped(
    tmp_path: Path, record: ProcessRecord, sleeper: "subprocess.Popen[bytes]"
) -> None:
    write_record(tmp_path, replace(record, is_program=False))
    for at_once in (False, True):
        with pytest.raises(ConfigError, match="trained by another program"):
            stop(tmp_path, at_once=at_once)
    assert sleeper.poll() is None


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, record: ProcessRecord) -> None:
    with pytest.raises(ConfigError, match=f"process {record.pid} trains in this folder"):
        require_idle(tmp_path)
    with pytest.raises(ConfigError, match=f"process {record.pid} trains in this folder"):
        start(["model=glm-tiny", f"data.train={ADVERTS}", f"output={tmp_path}"])
    write_record(tmp_path, replace(record, end="stopped"))
    require_idle(tmp_path)


def test_a_folder_is_held_from_before_loading_until_its_process_is_gone(tmp_path: Path) -> None:
    """It is not there yet, and who is refused does not make it; a kill leaves nothing that holds it."""
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys, time; from pathlib import Path; from glmtune.run_process import alone_in\n"
            "with alone_in(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)",
            folder,
        ],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        words = [f"model={tiny_folder(tmp_path / 'model')}", *SMALL, "train.steps=1", "device=cpu"]
        told = f"process {holder.pid} trains in this folder"
        with pytest.raises(ConfigError, match=told):
            start([*words, f"output={folder}"])
        with pytest.raises(ConfigError, match=told):
            train(load_recipe({}, [*words, f"output={tmp_path}/model/../run"]), quiet=True)
        with pytest.raises(ConfigError, match=told):  # its rows were read before the other one began
            drain(training(load_recipe({}, [*words, f"output={folder}"])))
        assert not folder.exists()
        with alone_in(tmp_path / "another"):
            pass
    finally:
        holder.kill()
        holder.wait()
    for _ in range(2):  # one after the other, the second on an occupied folder
        with alone_in(folder):
            pass


def test_threads_of_one_process_do_not_train_in_one_folder_either(tmp_path: Path) -> None:
    told = f"process {os.getpid()} trains"
    with alone_in(tmp_path), pytest.raises(ConfigError, match=told), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


def test_a_run_on_another_machine_is_left_alone_as_long_as_it_gives_signs(
    tmp_path: Path, record: ProcessRecord
) -> None:
    write_record(tmp_path, replace(record, host="node7"))
    file = tmp_path / PROCESS_FILE
    with pytest.raises(ConfigError, match=f"process {record.pid} on node7 trains in this folder") as caught:
        require_idle(tmp_path)
    assert "if node7 is gone, the same command works in a minute" in caught.value.hint
    now = file.stat().st_mtime
    os.utime(file, (now, now - SILENT_S + SIGN_S))
    with pytest.raises(ConfigError, match="on node7 trains"), alone_in(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {PROCESS_FILE, "metrics.jsonl"}
    os.utime(file, (now, now - SILENT_S - 1))
    require_idle(tmp_path)
    write_record(tmp_path, replace(record, host="node7", end="stopped"))
    require_idle(tmp_path)


def test_a_run_gives_signs_until_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmtune.run_process.SIGN_S", 0.01)
    recording, file = Recording(tmp_path, steps=3), tmp_path / PROCESS_FILE
    for _ in range(2):
        os.utime(file, (0, 0))
        while file.stat().st_mtime < SILENT_S:
            time.sleep(0.01)
    (signs,) = [thread for thread in threading.enumerate() if thread.name == f"signs of {tmp_path}"]
    recording.end(None)
    signs.join(60)
    assert not signs.is_alive()


def test_the_process_itself_and_who_started_it_may_train(tmp_path: Path) -> None:
    for pid in (os.getpid(), os.getppid()):
        write_record(tmp_path, record_process(pid, command="glmtune train"))
        require_idle(tmp_path)


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (None, "finished", ""),
        (KeyboardInterrupt("saved"), "stopped", "saved"),
        (GeneratorExit(), "stopped", ""),
        (TrainingError("step 3: nan", hint="lower the rate"), "failed", "step 3: nan"),
        (ZeroDivisionError(), "failed", "ZeroDivisionError"),
    ],
)
def test_the_end_of_a_run_is_recorded_with_its_reason(
    tmp_path: Path, error: BaseException | None, state: str, message: str
) -> None:
    Recording(tmp_path, steps=3).end(error)
    found = state_of(tmp_path)
    assert (found.state, found.message) == (state, message)
    assert found.hint == ("lower the rate" if isinstance(error, TrainingError) else "")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / PROCESS_FILE).write_text("{")
    with pytest.raises(CheckpointError, match=r"process\.json:1:2: broken JSON"):
        read_record(tmp_path)
    write_json(tmp_path / PROCESS_FILE, {"pid": "many"})
    with pytest.raises(CheckpointError, match="'pid' must be a whole number"):
        state_of(tmp_path)


@pytest.mark.parametrize("damaged", [PROCESS_FILE, "metrics.jsonl"])
def test_a_damaged_run_hides_no_other(tmp_path: Path, record: ProcessRecord, damaged: str) -> None:
    runs = tmp_path / "runs"
    for name in ("damaged", "whole"):
        (runs / name).mkdir(parents=True)
        write_record(runs / name, record)
        append_json(runs / name / "metrics.jsonl", {"step": 1, "loss": 7.0, "step_s": 2.0})
    with (runs / "damaged" / damaged).open("r+b") as file:
        file.write(b"\0" * 40 + b"\n")
    whole, broken = find_live(runs)
    assert (whole.folder.name, whole.state) == ("whole", "running")
    assert (broken.folder.name, broken.state) == ("damaged", "broken")
    assert damaged in broken.message
    done = glmtune("status", cwd=tmp_path)
    assert done.returncode == 0
    assert "runs/whole: running, step 1 of 10" in done.stdout
    assert f"runs/damaged: broken\n  runs/damaged/{damaged}" in done.stdout
    told = json.loads(glmtune("status", "--json", cwd=tmp_path).stdout)
    assert [state["state"] for state in told] == ["running", "broken"]
    alone = glmtune("status", "runs/damaged", cwd=tmp_path)
    assert alone.returncode == 2
    assert alone.stderr.startswith(f"error: runs/damaged/{damaged}")
    pytest.importorskip("gradio")
    from glmtune.web.runs_tab import RunsTab

    tab = RunsTab(Words("en"), runs=runs, is_public=False)
    assert tab.choose_first([])["value"] == [str(runs / "whole")]


def test_a_log_is_followed_until_the_run_has_ended(
    tmp_path: Path, record: ProcessRecord, sleeper: "subprocess.Popen[bytes]"
) -> None:
    log = tmp_path / LOG_FILE
    log.write_text("one\n")
    lines = follow_log(tmp_path)
    assert next(lines) == "one"
    with log.open("a") as file:
        file.write("two\nthree\n")
    assert next(lines) == "two"
    sleeper.kill()
    assert list(lines) == ["three"]
    assert list(follow_log(tmp_path, is_followed=False)) == ["one", "two", "three"]
    assert glmtune("logs", tmp_path, "-n", 1, cwd=tmp_path).stdout == "three\n"


def test_a_run_of_a_terminal_has_no_log_and_a_folder_without_a_run_no_state(
    tmp_path: Path, record: ProcessRecord
) -> None:
    with pytest.raises(ConfigError, match=r"running, without train\.log"):
        log_of(tmp_path)
    with pytest.raises(ConfigError, match="no run here"):
        state_of(tmp_path / "none")


def test_an_error_before_the_first_step_is_the_callers_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n')
    done = glmtune("train", "model=glm-tiny", "data.train=bad.jsonl", "--detach", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: bad.jsonl:1: cannot tell the format; columns found: 'a'\nhint: ")
    assert not (tmp_path / "runs" / "glm-tiny-lora").exists()


@pytest.mark.slow
def test_a_run_in_the_background_is_seen_stopped_and_gone_on_with(tmp_path: Path) -> None:
    words = [
        f"model={tiny_folder(tmp_path / 'model', seq_length=512)}",
        *SMALL,
        "train.steps=400",
        f"output={tmp_path / 'run'}",
    ]
    shown: list[str] = []
    begun = start(words, show=shown.append)
    assert (
        any(line.startswith("global step 1 ") for line in shown) or (begun.folder / "metrics.jsonl").exists()
    )
    assert state_of(begun.folder).state == "running"
    assert [entry.state for entry in summarise_runs(tmp_path)] == ["running"]
    assert os.getsid(begun.pid) == begun.pid  # of its own: a terminal's hang-up does not reach it
    done = glmtune("stop", begun.folder, cwd=tmp_path)
    assert "stopped, step " in done.stdout, done.stderr
    reached = state_of(begun.folder).step
    again = start([str(begun.folder)], options=["--resume"])
    assert state_of(again.folder).state in ("running", "finished")
    stop(again.folder, at_once=True)
    assert wait_for_end(again.folder).state == "stopped"
    steps = [json.loads(line)["step"] for line in (begun.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] > reached


def test_a_term_before_the_first_step_ends_the_command_as_ctrl_c_does() -> None:
    with pytest.raises(Interrupted) as caught, terminable():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_run_that_ends_while_it_is_looked_at_was_not_killed(
    tmp_path: Path, record: ProcessRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = replace(record, pid=os.getpid())  # no process of that number and birth

    def read_and_end(folder: Path) -> ProcessRecord:
        monkeypatch.undo()
        write_record(folder, replace(gone, end="finished"))
        append_json(folder / "metrics.jsonl", {"step": 4, "loss": 1.0, "step_s": 2.0})
        return gone

    monkeypatch.setattr("glmtune.workflows.runner.read_record", read_and_end)
    state = state_of(tmp_path)
    assert (state.state, state.step) == ("finished", 4)
