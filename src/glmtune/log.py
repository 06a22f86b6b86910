"""Lines for the user that are not results: choices made, places found. They go to stderr."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("glmtune")

# bitsandbytes advises another package as soon as PEFT imports it; that kernel is for repacked weights, which
# are never made here
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def tell(text: str) -> None:
    """Say one line. `logging.getLogger("glmtune").setLevel("WARNING")` silences it."""
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
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
def quiet() -> Iterator[None]:
    """Inside, `tell` says nothing."""
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def told_after() -> Iterator[None]:
    """Inside, the lines of `tell` wait: a text that grows on the screen is not to be broken by one."""
    waiting: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        waiting.append(record)
        return False

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
        for record in waiting:
            logger.handle(record)


def tell_left_out(num_rounds: int, context: int) -> None:
    """Say that a conversation has outgrown its model."""
    rounds = "round no longer fits" if num_rounds == 1 else f"{num_rounds:,} rounds no longer fit"
    are = "is" if num_rounds == 1 else "are"
    tell(f"> the oldest {rounds} the model's {context:,} tokens and {are} left out")
