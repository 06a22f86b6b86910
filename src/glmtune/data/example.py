"""A conversation of a data set, and the file and line that it was read from."""

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


class naming_row:  # noqa: N801  # used as a function: `with naming_row(where):`
    """Puts a row's file and line in front of every `DataError` raised inside."""

    __slots__ = ("where",)

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, DataError):
            raise DataError(f"{self.where}: {error}", hint=error.hint) from error
