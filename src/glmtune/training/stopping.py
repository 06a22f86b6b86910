"""Ctrl-C, and the SIGTERM of schedulers: a run ends after a whole step, and not before that is saved."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from glmtune.log import is_main_process, tell

TWICE_S = 1.0
"""Signals within this time are one: torchrun sends its processes what the terminal has sent them already."""


class Interrupted(KeyboardInterrupt):
    """What was under way has ended as it was asked to. The message says what is kept and how to go on."""

    def __init__(self, message: str, *, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Whether this process has been asked to end."""

    def __init__(self) -> None:
        self.number = 0
        """The signal's; 0 while there was none."""
        self._since = 0.0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal only notes the request; a later one ends the process at once.

        Signals that are ignored stay so; only a program's main thread can hear them.
        """
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
                tell("interrupted: this step is finished and saved; once more ends at once, unsaved")
        elif time.monotonic() - self._since > TWICE_S:
            raise Interrupted("interrupted at once: what was not saved is lost", number=number)
