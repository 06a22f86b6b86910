"""Lines for the user that are not results: choices made, places found. They go to stderr."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TextIO

logger = logging.getLogger("glmtune")
_hear: ContextVar[Callable[[str], None] | None] = ContextVar("hear", default=None)

# bitsandbytes advises another package as soon as PEFT imports it; that kernel is for repacked weights, which
# are never made here
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


class _Stderr(logging.StreamHandler[TextIO]):
    """To whatever is stderr at that moment: notebooks, tests and progress bars put another in its place."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """Set once by the class above."""


def is_main_process() -> bool:
    """Only one of the processes that `torchrun` starts speaks."""
    return os.environ.get("RANK", "0") == "0"


def tell(text: str) -> None:
    """Say one line. `logging.getLogger("glmtune").setLevel("WARNING")` silences it."""
    if hear := _hear.get():
        hear(text)
        return
    if not logger.handlers:
        logger.addHandler(_Stderr())
        logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.info(text)


@contextmanager
def without_false_alarms() -> Iterator[None]:
    """Inside, PEFT and transformers do not warn of what they do themselves or take for a fault.

    PEFT takes AdaLoRA's rank pattern for LoRA's, and a target of rank 0 for weights that were lost. It asks
    transformers for names that are to go, and so do we, since earlier versions know no others. On a model
    without weights torch takes it for a fault that none are copied.
    """
    with warnings.catch_warnings():
        for text in (
            "The following rank_pattern keys did not",
            "Adapter .* invalid shape",
            "Initializing zero-el",
            ".*copying from a non-meta parameter",
            "`(is_gradient_checkpointing|gradient_checkpointing_enable)` is deprecated",
        ):
            warnings.filterwarnings("ignore", text)
        yield


@contextmanager
def without_bars() -> Iterator[None]:
    """Inside, transformers shows no bars of its own."""
    logging = sys.modules.get("transformers.utils.logging")
    if logging is None or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextmanager
def told_to(hear: Callable[[str], None]) -> Iterator[None]:
    """Inside, `hear` gets the lines of `tell`, and nobody else does."""
    before = _hear.set(hear)
    try:
        yield
    finally:
        _hear.reset(before)


def quiet() -> AbstractContextManager[None]:
    """Inside, `tell` says nothing."""
    return told_to(lambda _: None)


@contextmanager
def told_after() -> Iterator[None]:
    """Inside, the lines of `tell` wait: a text that grows on the screen is not to be broken by one."""
    waiting: list[str] = []
    try:
        with told_to(waiting.append):
            yield
    finally:
        for text in waiting:
            tell(text)


def tell_left_out(num_rounds: int, context: int) -> None:
    """Say that a conversation has outgrown its model."""
    rounds = "round no longer fits" if num_rounds == 1 else f"{num_rounds:,} rounds no longer fit"
    are = "is" if num_rounds == 1 else "are"
    tell(f"> the oldest {rounds} the model's {context:,} tokens and {are} left out")
