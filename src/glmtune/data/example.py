"""A conversation of a data set, and the file and line that it was read from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from glmtune.errors import DataError
from glmtune.templates import Message


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation, the common form that rows of every data format are read into."""

    messages: tuple[Message, ...]
    where: str
    """File and line or row number, like `train.jsonl:2`."""
    source: int = 0
    """The number of the conversation's source in `data.train`."""


@contextmanager
def naming_row(where: str) -> Iterator[None]:
    """Return a context that puts the row's file and line in front of every `DataError` raised inside."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}", hint=error.hint) from error
