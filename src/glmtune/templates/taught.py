"""System text and source prefix, given to the model in training and therefore in every chat."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from glmtune.templates.messages import Message


class Told(Protocol):
    """An object with both texts: a recipe's `data`, or the card of an adapter or trained model."""

    @property
    def system(self) -> str | None:
        """The system text."""

    @property
    def source_prefix(self) -> str:
        """The source prefix."""


@dataclass(frozen=True, slots=True)
class Taught:
    """The system text and source prefix that a model was trained with."""

    system: str | None = None
    """Goes first in a conversation without a system text of its own."""
    source_prefix: str = ""
    """Goes in front of the first question (ChatGLM-6B, ChatGLM2: of the whole prompt)."""

    @classmethod
    def of(cls, source: Told | None) -> "Taught":
        """Take both texts from a recipe's `data` or a card; None gives empty ones."""
        return cls(source.system, source.source_prefix) if source else cls()

    def begin(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages with the system text in front, unless they have one.

        A first system turn without text, which only lists tools, gets the text.
        """
        if not self.system:
            return list(messages)
        own = next((i for i, message in enumerate(messages) if message.role == "system"), None)
        if own is None:
            return [Message("system", self.system), *messages]
        if own == 0 and not messages[0].content.strip():
            return [replace(messages[0], content=self.system), *messages[1:]]
        return list(messages)


def with_question_prefix(messages: Sequence[Message], source_prefix: str) -> list[Message]:
    """Return the messages with `source_prefix` in front of the first question."""
    if not source_prefix:
        return list(messages)
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    return [
        replace(message, content=source_prefix + message.content) if i == first else message
        for i, message in enumerate(messages)
    ]
