"""Lines that are no results (which model was opened, which default was chosen, warnings), through `logging`.

Each is a record of the logger "glmtune": INFO, or WARNING where the line has "warning:" in it. A program that
has configured `logging` gets them as its handlers and levels say: by the root logger's default level only the
warnings. Without any handler all go to stderr, unless the logger "glmtune" has been given a higher level.
Importing this adds no handler, sets no level and touches no other logger.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TextIO

logger = logging.getLogger("glmtune")

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Write to the `sys.stderr` of the moment: notebooks, tests and progress bars replace it."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """Ignore the stream of the moment at which the handler is made."""


_last_resort = _StderrHandler()  # never attached: `logging` would count it as the user's configuration


LAUNCHED = "GLMTUNE_LAUNCHED"
"""Environment variable of the processes that `--nproc` starts: the number of the process that did."""


def is_main_process() -> bool:
    """True in the process that prints: of those that `torchrun` starts, the one of rank 0."""
    return os.environ.get("RANK", "0") == "0"


def is_warning(text: str) -> bool:
    """True for a line that warns, such as "warning: ..." or "runs/x: warning: ..."."""
    return "warning:" in text


def tell(text: str) -> None:
    """Log one line, once in a run of several processes.

    `logging.getLogger("glmtune").setLevel("WARNING")` leaves only the warnings.
    """
    if listener := _listener.get():
        listener(text)
        return
    if not is_main_process():
        return
    level = logging.WARNING if is_warning(text) else logging.INFO
    if logger.hasHandlers():  # of its own, or of the root logger
        logger.log(level, text, stacklevel=2)
    # not `isEnabledFor`: unconfigured, the root logger's WARNING would hide which model was loaded
    elif level >= (logger.level or logging.INFO) and level > logger.manager.disable:
        _last_resort.handle(logger.makeRecord(logger.name, level, __file__, 0, text, (), None))


@contextmanager
def lines_on_stderr() -> Iterator[None]:
    """Inside, the lines of `tell` go to stderr and nowhere else: for the command line.

    A library may add a handler to the root logger; without propagation no line is shown twice.
    """
    handler, does_propagate, level = _StderrHandler(), logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(level or logging.INFO)  # whatever the root logger's is
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = does_propagate
        logger.setLevel(level)


@contextmanager
def without_false_alarms() -> Iterator[None]:
    """Inside, PEFT, bitsandbytes and transformers give no warnings that are wrong or no use here.

    Warning filters and the logger's level are restored at the end.
    """
    # As soon as PEFT imports it, bitsandbytes advises to install another package. The kernel of that package
    # is for repacked weights, which are never made here.
    adviser = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = adviser.level
    adviser.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in (
                # PEFT applies LoRA's check of rank patterns to AdaLoRA's,
                "The following rank_pattern keys did not",
                # and takes a target of rank 0, as AdaLoRA makes them, for weights that were lost
                "Adapter .* invalid shape",
                "Initializing zero-el",
                # the outline of a model has no weights on purpose; torch warns that none are copied
                ".*copying from a non-meta parameter",
                # PEFT and glmtune ask for the old names too, the only ones that earlier transformers know
                "`(is_gradient_checkpointing|gradient_checkpointing_enable)` is deprecated",
            ):
                warnings.filterwarnings("ignore", text)
            yield
    finally:
        adviser.setLevel(level)


@contextmanager
def without_bars() -> Iterator[None]:
    """Inside, transformers shows no progress bars of its own."""
    # not imported here: where transformers is not loaded yet, its bars are not shown either
    transformers_logging = sys.modules.get("transformers.utils.logging")
    if transformers_logging is None or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


@contextmanager
def told_to(listener: Callable[[str], None]) -> Iterator[None]:
    """Inside, `tell` calls `listener` with each line and logs nothing; other threads are not affected."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def quiet() -> AbstractContextManager[None]:
    """Inside, `tell` drops its lines."""
    return told_to(lambda _: None)


@contextmanager
def told_after() -> Iterator[None]:
    """Inside, `tell` holds its lines back until the end, so that none breaks into an answer being printed."""
    waiting: list[str] = []
    try:
        with told_to(waiting.append):
            yield
    finally:
        for text in waiting:
            tell(text)


def tell_left_out(num_rounds: int, context: int) -> None:
    """Log that the oldest rounds of a conversation no longer fit the model's context, in tokens."""
    rounds = "round no longer fits" if num_rounds == 1 else f"{num_rounds:,} rounds no longer fit"
    are = "is" if num_rounds == 1 else "are"
    tell(f"> the oldest {rounds} the model's {context:,} tokens and {are} left out")
