"""Lines for the user that are not results: choices made, places found. They go to stderr."""

import logging
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
def quiet() -> Iterator[None]:
    """Inside, `tell` says nothing."""
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
