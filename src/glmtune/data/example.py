"""One conversation of a dataset, and where it was read."""

from dataclasses import dataclass

from glmtune.templates import Message


@dataclass(frozen=True, slots=True)
class Example:
    """A row in the one shape that every data format is turned into."""

    messages: tuple[Message, ...]
    place: str
    """File and line or row number, like `train.jsonl:2`."""
    source: int = 0
    """Number of the source of training rows that it is from."""
