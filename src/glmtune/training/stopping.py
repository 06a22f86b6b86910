"""Ctrl-C, and SIGTERM from schedulers: end a run after the present step, once it is saved."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from glmtune.log import is_main_process, tell

TWICE_S = 1.0
"""Signals within this many seconds count as one: torchrun passes on what the terminal sent to all already."""


class Interrupted(KeyboardInterrupt):
    """Raised when a run has ended as requested. The message says what is saved, and how to go on."""

    def __init__(self, message: str, *, go_on: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(f"{message}; go on with: {go_on}" if go_on else message)
        self.reason = message
        """The message without the command: the run's folder may be moved."""
        self.exit_code = 128 + number


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises `Interrupted`, as Ctrl-C KeyboardInterrupt, instead of ending the process.

    A handler that is set already stays. Outside of the main thread nothing changes.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        raise Interrupted("interrupted", number=number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopRequest:
    """A request to end the run, made by a signal to this process."""

    def __init__(self) -> None:
        self.number = 0
        """Number of the signal; 0 before any."""
        self._since = 0.0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the `with` block, the first signal only sets `number`; a later one ends the process at once.

        Ignored signals stay ignored. Outside of the main thread nothing changes.
        """
        # Python lets only the main thread set handlers
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        heard = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
        for number in heard:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, old in heard.items():
                signal.signal(number, old)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
            if is_main_process():
                once_more = "once more, a second from now, ends at once, unsaved"
                tell(f"interrupted: this step is finished and saved; {once_more}")
        elif time.monotonic() - self._since > TWICE_S:
            raise Interrupted("interrupted at once: what was not saved is lost", number=number)
