"""One conversation of a dataset, and where it was read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from glmtune.errors import DataError
from glmtune.templates import Message


@dataclass(frozen=True, slots=True)
class Example:
    """A row in the one shape that every data format is turned into."""

    messages: tuple[Message, ...]
    where: str
    """File and line or row number, like `train.jsonl:2`."""
    source: int = 0
    """Number of the source of training rows that it is from."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Inside, what is wrong with a row is said with its place in front."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}", hint=error.hint) from error
