"""Start a training run in a process of its own, look at it, read its log, stop it. Loads no torch.

    started = start(["model=glm-tiny", "data.train=my.json", "output=runs/mine"])
    state_of(started.folder).step
    stop(started.folder)

The run outlives the process that started it and its terminal. The command line and the web page use this.
"""

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from glmtune.errors import CheckpointError, ConfigError, GlmtuneError, TrainingError
from glmtune.files import given_path, is_there, unreadable
from glmtune.locations import runs_hint
from glmtune.run_files import (
    LOG_FILE,
    METRICS_FILE,
    PROCESS_FILE,
    RECIPE_FILE,
    RESULT_FILE,
    cannot_write,
    make_folder,
    remove_folder,
)
from glmtune.run_process import (
    LIVE,
    Phase,
    ProcessRecord,
    RunStateName,
    State,
    alone_in,
    read_record,
    record_process,
    write_record,
)
from glmtune.workflows.early import require_startable, settled_folder, training_recipe
from glmtune.workflows.resuming import require_run, resume_command

POLL_S = 0.1
"""Seconds between two looks at a process or a log."""
TAIL_BYTES = 2**16
"""Bytes at the end of metrics.jsonl and of a log that a state is read from."""
RECENT_STEPS = 20
"""Steps that the time left is reckoned by."""
_PHASES: tuple[Phase, ...] = ("starting", "standing", "training")
_ERROR = re.compile(r"^error: (.*?)\nhint: (.*?)$", re.MULTILINE | re.DOTALL)
"""An error of ours as the command line prints it; its message may have several lines."""
Show = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Started:
    """A run that trains in a process of its own."""

    folder: Path
    pid: int
    log: Path
    """File of all that the run prints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run at a moment."""

    folder: Path
    state: State
    pid: int | None = None
    """Its process, also one that has ended; None for a run of a version that recorded none."""
    host: str = ""
    began: str = ""
    """Time at which that process began, such as 2026-12-01T20:15:00+00:00."""
    step: int = 0
    """The last step made."""
    steps: int | None = None
    """Steps of the whole run; None where they are not known."""
    loss: float | None = None
    """Training loss of the last step."""
    eval_loss: float | None = None
    """The last evaluation loss."""
    eta_s: float | None = None
    """Seconds that the steps left take at the present pace; None unless it is running."""
    last_line: str = ""
    """The last line of its log; empty without a log."""
    message: str = ""
    """The reason of its end."""
    hint: str = ""
    """Advice on that reason."""

    @property
    def is_live(self) -> bool:
        """True while its process runs."""
        return self.state in LIVE

    @property
    def share(self) -> float | None:
        """Share of the steps that are made, 0 to 1; None where their number is not known."""
        return min(self.step / self.steps, 1.0) if self.steps else None


def start(
    words: Sequence[str],
    *,
    options: Sequence[str] = (),
    until: Phase = "training",
    show: Show = lambda _: None,
) -> Started:
    """Start `glmtune train` with these words and options in a process and session of its own.

    Returns once the run has come so far as `until`, by default to its first step; `show` gets each line that
    it prints until then. What it prints goes to train.log in its folder. Raises the `ConfigError` of words
    that cannot be trained by, and `TrainingError` with the run's own message if it ends before. Ctrl-C before
    that ends the run too.
    """
    recipe = (
        training_recipe(words[0], words[1:]) if words and "=" not in words[0] else training_recipe({}, words)
    )
    folder, is_resumed = settled_folder(recipe), "--resume" in options
    log, command = folder / LOG_FILE, shlex.join(["glmtune", "train", *words, *options])
    child = None
    try:
        # until the record is there, which keeps others out as long as the child loads
        with alone_in(folder):
            require_run(folder, recipe.train.copy_to) if is_resumed else require_startable(recipe, folder)
            make_folder(folder)
            begin = log.stat().st_size if is_resumed and log.exists() else 0
            child = _spawn(["train", *words, *options], log, is_new=not is_resumed)
            _record_start(folder, child, command)
        code = _wait_for(child, folder, until, _lines(log, begin), show)
    except BaseException:  # Ctrl-C: who started it does not want it
        if child:
            child.terminate()
            child.wait()
            _clear(folder)
        raise
    if code:
        error = _failure(folder, log, begin, code)
        _clear(folder)
        raise error
    # reaped as soon as it ends, however long this program lives
    threading.Thread(target=child.wait, daemon=True).start()
    return Started(folder, child.pid, log)


def _spawn(words: Sequence[str], log: Path, *, is_new: bool) -> "subprocess.Popen[bytes]":
    """Start glmtune in a session of its own, its output in the log. Raises `OutputError`."""
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    try:
        with log.open("wb" if is_new else "ab") as file:
            command = [sys.executable, "-m", "glmtune", *words]
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, **apart
            )
    except OSError as err:
        raise cannot_write(log, err) from err


def _record_start(folder: Path, child: "subprocess.Popen[bytes]", command: str) -> None:
    """Write process.json for a process that has just been started, unless it has done so itself."""
    try:
        record = record_process(child.pid, command=command)
    except psutil.NoSuchProcess:
        return
    known = read_record(folder)
    # a process that is quick has written a later phase already, which must stay
    if known is None or known.birth != record.birth or known.pid != record.pid:
        write_record(folder, record)


def _wait_for(
    child: "subprocess.Popen[bytes]", folder: Path, until: Phase, lines: Iterator[str], show: Show
) -> int:
    """Wait until a run has come so far, or has ended; return the exit code, 0 while it lives."""
    has_failed = False
    while True:
        # first: what it said before its end is in the log by now, and read below
        code = child.poll()
        record = read_record(folder)
        for line in lines:
            if line is _NO_MORE:
                break
            has_failed = has_failed or line.startswith("error: ")
            if not has_failed:  # the error is raised
                show(line)
        if code is not None:
            return code
        if record and _PHASES.index(record.phase) >= _PHASES.index(until):
            return 0
        time.sleep(POLL_S)


_NO_MORE = "\n"  # compared by `is`, and Python keeps one object for it: no line can be a line break
"""Yielded by `_lines` whenever there is no whole line left for now."""


def _lines(log: Path, begin: int) -> Iterator[str]:
    """Yield the lines of a log from a byte on, and `_NO_MORE` whenever none is left for now, without end."""
    with log.open("rb") as file:
        file.seek(begin)
        rest = b""
        while True:
            rest += file.read()
            *whole, rest = rest.split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace")
            yield _NO_MORE


def _failure(folder: Path, log: Path, begin: int, code: int) -> TrainingError:
    """Return the error of a run that ended before it had come far enough, from what it has printed."""
    said = log.read_bytes()[begin:].decode("utf-8", "replace")
    if found := list(_ERROR.finditer(said)):
        message, hint = found[-1].groups()
        return TrainingError(message, hint=hint)
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
    return TrainingError(
        f"{folder}: the run has ended {how} before its first step: {last}",
        hint="begin it in a terminal: `glmtune train` with the same words shows each line as it comes",
    )


def _clear(folder: Path) -> None:
    """Delete the folder of a run of which there is nothing but its log and process.json."""
    if is_there(folder) and {path.name for path in folder.iterdir()} <= {LOG_FILE, PROCESS_FILE}:
        remove_folder(folder)


def state_of(folder: str | Path) -> RunState:
    """Return the state of a run by its files and its process. Raises `ConfigError`, `CheckpointError`."""
    run = given_path(folder)
    record = read_record(run)
    if record is None and not is_there(run / RECIPE_FILE):
        raise ConfigError(
            f"{run}: no run here", hint=runs_hint(run) or "`glmtune runs` lists those that there are"
        )
    state: RunStateName = "finished" if (run / RESULT_FILE).exists() else "stopped"
    if record is not None:
        state = record.state
        if record.end is None and state not in LIVE:
            # it may have written its end, and gone, since the record was read: what is there now is the last
            record = read_record(run) or record
            state = record.state
    # after the process: the lines of one that has ended are complete
    metrics = _last_lines(run / METRICS_FILE)
    steps = [line for line in metrics if "loss" in line]
    evaluations = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    said = _tail(run / LOG_FILE) if (run / LOG_FILE).exists() else []
    facts: dict[str, Any] = {
        "step": steps[-1]["step"] if steps else 0,
        "loss": steps[-1]["loss"] if steps else None,
        "eval_loss": evaluations[-1] if evaluations else None,
        "last_line": next((text for text in reversed(said) if text.strip()), ""),
    }
    if record is None:
        return RunState(folder=run, state=state, **facts)
    paces = [line["step_s"] for line in steps[-RECENT_STEPS:] if line.get("step_s") is not None]
    left = record.steps - facts["step"] if record.steps is not None else None
    known = {name: getattr(record, name) for name in ("pid", "host", "began", "steps", "message", "hint")}
    is_known = state == "running" and paces and left is not None
    eta_s = sum(paces) / len(paces) * left if is_known and left is not None else None
    return RunState(folder=run, state=state, eta_s=eta_s, **facts, **known)


def _tail(path: Path) -> list[str]:
    """Return the last whole lines of a text file. Raises `CheckpointError`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            content = file.read()
    except OSError as err:
        raise unreadable(path, err) from err
    lines = content.decode("utf-8", "replace").split("\n")
    return lines[1 if size > TAIL_BYTES else 0 : -1]


def _last_lines(path: Path) -> list[Mapping[str, Any]]:
    """Return the last lines of metrics.jsonl that are whole; none if there is no such file."""
    found = []
    for line in _tail(path) if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            raise CheckpointError(
                f"{path}: a line is damaged: {line[:80]}", hint="copy the file again, or take that line out"
            ) from None
    return [line for line in found if isinstance(line, dict)]


def find_live(folder: str | Path = "runs") -> list[RunState]:
    """Return the states of the runs in a folder and below it whose processes run, the newest first.

    Behind them those of the runs whose files cannot be read: what became of them is not known.
    """
    found = []
    for path in sorted(given_path(folder).rglob(PROCESS_FILE)):
        try:
            found.append(state_of(path.parent))
        except GlmtuneError as err:
            found.append(RunState(folder=path.parent, state="broken", message=str(err), hint=err.hint))
    shown = (each for each in found if each.is_live or each.state == "broken")
    return sorted(shown, key=lambda each: each.began, reverse=True)


def log_of(folder: str | Path) -> Path:
    """Return the file that a run's lines are in. Raises `ConfigError` if it has none."""
    run = given_path(folder)
    if not (run / LOG_FILE).exists():
        state = state_of(run)  # raises where there is no run at all
        raise ConfigError(
            f"{run}: {state.state}, without {LOG_FILE}: its lines went to the terminal that it was begun in",
            hint=f"{METRICS_FILE} in its folder has the figures of each step; "
            "`glmtune train RUN --detach` keeps the lines of a run",
        )
    return run / LOG_FILE


def follow_log(folder: str | Path, *, is_followed: bool = True) -> Iterator[str]:
    """Yield the lines of a run's log, and, if `is_followed`, those to come until the run has ended."""
    log = log_of(folder)
    has_ended = not is_followed or not state_of(folder).is_live
    for line in _lines(log, 0):
        if line is not _NO_MORE:
            yield line
        elif has_ended:
            return
        else:
            # one more look at the log once it has ended: its last lines may have come since
            has_ended = not state_of(folder).is_live
            time.sleep(POLL_S)


def stop(folder: str | Path, *, at_once: bool = False) -> RunState:
    """Ask a run to end after the present step, saved; `at_once`: end it unsaved. Returns its state now.

    The run ends some time later: `wait_for_end`. Raises `ConfigError` if it is not live, or if its process is
    not glmtune's own program.
    """
    state = state_of(folder)
    record = read_record(state.folder)
    if not state.is_live or record is None:
        raise ConfigError(
            f"{state.folder}: {state.state}; there is no process to stop",
            hint=f"go on with {resume_command(state.folder)}, or see `glmtune runs`",
        )
    if not record.is_program:
        raise ConfigError(
            f"{state.folder}: trained by another program (process {record.pid}), which is not stopped here",
            hint="end it where it was begun, with Ctrl-C",
        )
    if psutil.WINDOWS and not at_once:
        raise ConfigError(
            f"{state.folder}: on Windows a run cannot be asked from outside to save itself",
            hint=f"`glmtune stop {shlex.quote(str(state.folder))} --now` ends it, and it goes on from its "
            "last checkpoint",
        )
    # before the signal: a run that is gone at once must be told from a killed one
    write_record(state.folder, replace(record, is_stop_asked=True))
    _signal(record, state.folder, at_once=at_once)
    return state_of(state.folder)


def _signal(record: ProcessRecord, folder: Path, *, at_once: bool) -> None:
    """Signal the process of a record, if it is still that one. Raises `ConfigError` for another user's."""
    try:
        process = psutil.Process(record.pid)
        if not record.is_alive:
            return
        # --nproc: SIGTERM is passed on by the launcher, SIGKILL by nobody
        for each in [*process.children(recursive=True), process] if at_once else [process]:
            each.kill() if at_once else each.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise ConfigError(
            f"{folder}: process {record.pid} is another user's", hint="ask that user, or an administrator"
        ) from None


def wait_for_end(folder: str | Path, *, timeout_s: float | None = None) -> RunState:
    """Wait until a run's process has ended, or for so many seconds; return its state then."""
    until = None if timeout_s is None else time.monotonic() + timeout_s
    while (state := state_of(folder)).is_live and (until is None or time.monotonic() < until):
        time.sleep(POLL_S)
    return state
