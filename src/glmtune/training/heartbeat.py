"""Signs of life: every process of a run tells the others that it lives, and at which step it is.

A process that is stopped, or whose machine is gone, closes no connection: those that wait for it would wait
for as long as a step may take. A thread of each process counts up a number that others read.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import TCPStore, broadcast_object_list  # type: ignore[attr-defined]

from glmtune.log import LAUNCHED

BEAT_S = 2.0
"""Seconds between two signs of life."""
SILENT_BEATS = 20
"""Own beats without a new sign of life of another process, after which that one counts as stopped. Counted
and not timed: a machine that sleeps for an hour stops all processes alike."""
MEETING_POLL_S = 0.1
"""Seconds between two looks for the first process."""
_ENDED = "ended"


class Heartbeat:
    """The signs of life of a process, and those of the processes that it watches.

    The first process watches all, the others watch the first, which keeps the store.
    """

    def __init__(self, rank: int, number: int, *, beat_s: float = BEAT_S) -> None:
        """Join the others; all processes must call it. `beat_s`: seconds between two signs of life."""
        self._rank, self._number, self._beat_s = rank, number, beat_s
        self.place = "before step 1"
        """The part of the run that this process is in, as others are told."""
        self.on_silence: Callable[[str], None] | None = None
        """Called in a thread, once, with a sentence about the process that is silent."""
        self._seen: dict[int, str] = {}
        self._meetings = 0
        self._end = threading.Event()
        self._has_stopped = False
        self._store = _join_store(is_first=rank == 0)
        # two, as giving may hang in the store of a stopped process while watching must go on
        for work in (self._give, self._watch):
            threading.Thread(target=work, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Tell the others that this process has ended as it should; watch no more."""
        self._has_stopped = True
        self._end.set()
        self._set(_ENDED)

    def wait_for_first(self) -> None:
        """Wait, without a limit, until the first process has come here; all processes must call it.

        Raises RuntimeError if it is gone; one that is silent is left to `on_silence`.
        """
        self._meetings += 1
        key = f"meeting/{self._meetings}"
        if self._rank == 0:
            self._store.set(key, "")
        # not the store's own wait: it would keep the signs of life from going out
        try:
            while not self._store.check([key]):
                time.sleep(MEETING_POLL_S)
        except RuntimeError as err:  # in words that are known of collectives
            raise RuntimeError("the first process's store is closed by peer") from err

    def whereabouts(self) -> str:
        """Return where the processes are by their last sign of life: `process 0 is at step 3, ...`."""
        told = {rank: text.partition(" ")[2] for rank, text in self._seen.items()} | {self._rank: self.place}
        return ", ".join(f"process {rank} is at {told[rank]}" for rank in sorted(told))

    def _give(self) -> None:
        """Give and read signs of life. A call may hang as long as the first process is stopped."""
        watched, beat = self._watched(), 0
        while True:  # the first at once: a process that is stopped in its first seconds has been seen
            beat += 1
            self._set(f"{beat} {self.place}")
            if self._has_stopped:  # `stop` came between: its word has to be the last
                self._set(_ENDED)
            for rank in watched:
                try:
                    # `get` alone would wait for a key that no process has set yet
                    if self._store.check([_key(rank)]):
                        self._seen[rank] = self._store.get(_key(rank)).decode()
                except RuntimeError:  # the first process is gone, and its store with it
                    continue
            if self._end.wait(self._beat_s):
                return

    def _watch(self) -> None:
        """Count own beats in which another process gave no sign of life; look for what has started this one.

        If `--nproc` was ended by SIGKILL, nobody passes on a signal to end: then all save and end at once.
        """
        # on Windows a process may have another one between itself and what has started it
        launcher = None if sys.platform == "win32" else os.environ.get(LAUNCHED)
        last, silent = dict[int, str](), dict.fromkeys(self._watched(), 0)
        while not self._end.wait(self._beat_s):
            if launcher and os.getppid() != int(launcher):
                launcher = None
                os.kill(os.getpid(), signal.SIGTERM)
            for rank in silent:
                now = self._seen.get(rank, "")
                silent[rank] = silent[rank] + 1 if now == last.get(rank, "") and now != _ENDED else 0
                last[rank] = now
                if silent[rank] >= SILENT_BEATS and self.on_silence:
                    # no beat from here on: the others are to see that this process goes too
                    self._end.set()
                    place = now.partition(" ")[2]
                    since = f" since it was at {place}" if place else ""
                    self.on_silence(f"process {rank} has given no sign of life{since}")
                    return

    def _watched(self) -> range:
        return range(1, self._number) if self._rank == 0 else range(1)

    def _set(self, text: str) -> None:
        try:
            self._store.set(_key(self._rank), text)
        except RuntimeError:  # as above
            return


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _join_store(*, is_first: bool) -> TCPStore:
    """Return a store of the first process, on a free port of its machine."""
    host, limit = os.environ["MASTER_ADDR"], timedelta(seconds=60)
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=limit) if is_first else None
    # port 0: the system chooses one, so that it is told to the others by what joins them already
    told = [store.port if store else 0]
    broadcast_object_list(told, src=0)
    return store or TCPStore(host, told[0], is_master=False, timeout=limit)


_current: list[Heartbeat] = []
_listeners: list[Callable[[str], None]] = []


def begin(rank: int, number: int) -> Heartbeat:
    """Return this program's heartbeat, begun at the first call; all processes must call it."""
    if not _current:
        _current.append(Heartbeat(rank, number))
    _current[0].on_silence = _listeners[-1] if _listeners else None
    return _current[0]


@contextmanager
def listening(on_silence: Callable[[str], None]) -> Iterator[None]:
    """Inside, a heartbeat that begins calls `on_silence` with a sentence about a process that is silent."""
    _listeners.append(on_silence)
    try:
        yield
    finally:
        _listeners.remove(on_silence)


def whereabouts() -> str:
    """Return where this program's processes are, in words; empty for a single one."""
    return _current[0].whereabouts() if _current else ""


def end() -> None:
    """Tell the other processes that this one has ended as it should, if there are others."""
    while _current:
        _current.pop().stop()
