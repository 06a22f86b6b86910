"""Long work for a page: its lines are shown while it runs, and it ends even if the page is closed."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from glmtune.errors import GlmtuneError
from glmtune.web.markup import error_lines, lines
from glmtune.web.words import Words

SHOWN_EVERY_S = 0.3
MOST_LINES = 8
"""The last lines of the work that are shown."""
Result = TypeVar("Result")
Say = Callable[[str], None]


def running(work: Callable[[Say], Result], done: Callable[[Result], str], words: Words) -> Iterator[str]:
    """Do the work in a thread; yield its last lines as they come, then `done` of its result, or its error."""
    said: list[str] = []
    # leaving the pool waits for the work, also where a closed page ends this generator at a `yield`
    with ThreadPoolExecutor(max_workers=1) as pool:
        future: Future[Result] = pool.submit(work, said.append)
        shown = -1
        while not future.done():
            if len(said) != shown:
                shown = len(said)
                yield lines([words("starting"), *said[-MOST_LINES:]])
            wait([future], timeout=SHOWN_EVERY_S)
    try:
        yield done(future.result())
    except GlmtuneError as err:
        yield error_lines(err, words)
