"""The process that trains in a run's folder: recorded in process.json, and known to be alive or gone."""

import hashlib
import os
import platform
import shlex
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock, Timeout

from glmtune.errors import CheckpointError, ConfigError, GlmtuneError, OutputError
from glmtune.files import is_there, read_json
from glmtune.run_files import PROCESS_FILE, cannot_write, write_json

Phase = Literal["starting", "standing", "training"]
"""`starting`: the process loads; `standing`: all that can be refused was not; `training`: a step is made."""
RunStateName = Literal["starting", "running", "finished", "stopped", "failed", "killed", "unknown"]
"""`stopped`: ended as asked; `failed`: with an error; `killed`: gone without a word; `unknown`: its process
is on another machine."""
State = RunStateName | Literal["broken"]
"""`broken`: its files cannot be read."""
LIVE = ("starting", "running")
LOCK_S = 1.0
"""Seconds to wait for a folder that another process holds: who only looks at it holds it for a moment."""
SIGN_S = 20.0
"""Seconds between two signs of life of a run: the time of its process.json, which other machines see."""
SILENT_S = 60.0
"""Seconds without a sign of life after which a run on another machine counts as gone."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """The content of process.json."""

    pid: int
    birth: str
    """Mark of the process besides its number, which another one has once this one is gone."""
    host: str
    began: str
    """Time of its begin, such as 2026-12-01T20:15:00+00:00."""
    phase: Phase
    is_program: bool
    """False if the process is a program of the user's that trains by `glmtune.train`."""
    command: str = ""
    steps: int | None = None
    """Steps of the whole run; None until they are counted."""
    is_stop_asked: bool = False
    end: RunStateName | None = None
    """`finished`, `stopped` or `failed`; None while it trains, and after a kill."""
    message: str = ""
    """The reason of the end."""
    hint: str = ""

    @property
    def is_alive(self) -> bool:
        """True if this very process runs on this machine."""
        try:
            process = psutil.Process(self.pid)
            # a zombie has ended, and only waits for its parent to ask
            return birth_mark(process) == self.birth and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    @property
    def state(self) -> RunStateName:
        """The state of the run, by this record and by the processes of this machine."""
        if self.end:
            return self.end
        # a shared disk: the number means another process here
        if self.host != platform.node():
            return "unknown"
        if self.is_alive:
            return "starting" if self.phase == "starting" else "running"
        return "stopped" if self.is_stop_asked else "killed"


def birth_mark(process: psutil.Process) -> str:
    """Return the mark of a process: the boot it lives in and its begin after that, in seconds.

    The seconds since 1970 would shift with the clock; where there is no name of a boot they have to do.
    """
    if _BOOT_ID.exists():
        age = process.create_time() - psutil.boot_time()
        return f"{_BOOT_ID.read_text(encoding='ascii').strip()} {age:.2f}"
    return f"{process.create_time():.0f}"


def record_process(pid: int, *, command: str, is_program: bool = True) -> ProcessRecord:
    """Return the record of a process that starts. Raises `psutil.NoSuchProcess` if it has gone already."""
    return ProcessRecord(
        pid=pid,
        birth=birth_mark(psutil.Process(pid)),
        host=platform.node(),
        began=datetime.now().astimezone().isoformat(timespec="seconds"),
        phase="starting",
        is_program=is_program,
        command=command,
    )


def write_record(folder: Path, record: ProcessRecord) -> None:
    """Write a run's process.json. Raises `OutputError`."""
    write_json(folder / PROCESS_FILE, asdict(record))


def read_record(folder: Path) -> ProcessRecord | None:
    """Read a run's process.json; None if there is none. Raises `CheckpointError`."""
    path = folder / PROCESS_FILE
    if not is_there(path):
        return None
    content: dict[str, Any] = read_json(path, is_ours=True)
    known = {name: content[name] for name in ProcessRecord.__dataclass_fields__ if name in content}
    try:
        return ProcessRecord(**known)
    except TypeError:
        raise CheckpointError(
            f"{path}: not the record of a process", hint=f"delete {path}: it only says which process trains"
        ) from None


def own_command() -> str:
    """Return the command line of this process if it is glmtune's own program; else it is empty."""
    program = Path(sys.argv[0])  # the words of other programs are theirs
    is_ours = program.stem == "glmtune" or program.parts[-2:] == ("glmtune", "__main__.py")
    return shlex.join(["glmtune", *sys.argv[1:]]) if is_ours else ""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process of this machine trains in a folder, which need not be there yet.

    The system frees the folder when the process ends, however that comes. Raises `ConfigError` if another
    process trains in it, also one on another machine, and `OutputError`.
    """
    # not in the folder, in which a run that is refused leaves nothing; each user has a lock of one's own
    key = os.fsencode(f"{psutil.Process().username()} {folder.resolve()}")
    path = Path(tempfile.gettempdir(), f"glmtune-{hashlib.sha256(key).hexdigest()[:32]}.lock")
    lock = FileLock(path, timeout=LOCK_S, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        number = ""
        with suppress(OSError):  # Windows lets nobody read a locked file
            number = path.read_text(encoding="ascii")
        raise _occupied(folder, f"process {number}" if number else "another process") from None
    except OSError as err:
        raise cannot_write(path, err) from err
    try:
        with suppress(OSError):
            path.write_text(str(os.getpid()), encoding="ascii")
        require_idle(folder)
        yield
    finally:
        with suppress(OSError):  # Windows keeps an open file
            path.unlink()  # before the release: who waits for it sees that it is gone, and makes another
        lock.release()


def require_idle(folder: Path) -> None:
    """Raise `ConfigError` if by its process.json another process trains in a folder."""
    record = read_record(folder)
    if record is None:
        return
    if record.state == "unknown":
        # both times are of the clock of the disk; opened, as a shared disk tells an old time for a while
        try:
            with (folder / PROCESS_FILE).open("rb") as file, tempfile.TemporaryFile(dir=folder) as now:
                silent_s = os.fstat(now.fileno()).st_mtime - os.fstat(file.fileno()).st_mtime
        except OSError as err:
            raise cannot_write(folder, err) from err
        if silent_s < SILENT_S:
            raise ConfigError(
                f"{folder}: process {record.pid} on {record.host} trains in this folder",
                hint=f"if {record.host} is gone, the same command works in a minute; or name another folder: "
                "output=...",
            )
    # parents too: `start` records the launcher of --nproc, whose children train
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    if record.state in LIVE and record.pid not in own:
        raise _occupied(folder, f"process {record.pid}")


def _occupied(folder: Path, who: str) -> ConfigError:
    name = shlex.quote(str(folder))
    return ConfigError(
        f"{folder}: {who} trains in this folder",
        hint=f"`glmtune status {name}` shows how far it is, `glmtune stop {name}` saves and ends it; "
        "or name another folder: output=...",
    )


class Recording:
    """The process.json of the run that this process trains."""

    def __init__(self, folder: Path, *, steps: int) -> None:
        is_main_thread = threading.current_thread() is threading.main_thread()  # which alone hears signals
        command = own_command() if is_main_thread else ""
        started = record_process(os.getpid(), command=command, is_program=bool(command))
        self._folder = folder
        self._record = replace(started, phase="standing", steps=steps)
        write_record(folder, self._record)
        self._has_ended = threading.Event()
        threading.Thread(target=self._give_signs, name=f"signs of {folder}", daemon=True).start()

    def _give_signs(self) -> None:
        """Renew the time of process.json until the end; a disk that is away for a while is no reason to."""
        while not self._has_ended.wait(SIGN_S):
            with suppress(OSError):
                os.utime(self._folder / PROCESS_FILE)

    def step(self) -> None:
        """Record that a step is made; only the first changes the file."""
        if self._record.phase != "training":
            self._record = replace(self._record, phase="training")
            write_record(self._folder, self._record)

    def end(self, error: BaseException | None) -> None:
        """Record the end. Nothing is written where the folder is gone, or if the disk is full."""
        self._has_ended.set()
        is_asked = isinstance(error, KeyboardInterrupt | GeneratorExit | SystemExit)
        how: RunStateName = "finished" if error is None else "stopped" if is_asked else "failed"
        hint = error.hint if isinstance(error, GlmtuneError) else ""
        said = getattr(error, "reason", str(error))  # of `Interrupted`
        text = "" if error is None else said or type(error).__name__ * (not is_asked)
        record = replace(self._record, end=how, message=text, hint=hint)
        with suppress(OutputError):
            if is_there(self._folder / PROCESS_FILE):
                write_record(self._folder, record)


def recorded_state(folder: Path) -> RunStateName | None:
    """Return the state of a run by its process.json; None for a run without one. Raises `CheckpointError`."""
    record = read_record(folder)
    return record.state if record else None
