"""The texts that a model is told with every conversation: in training, and so in chat."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from glmtune.templates.messages import Message


class Told(Protocol):
    """What names both texts: a recipe's `data`, the card of what was trained."""

    @property
    def system(self) -> str | None:
        """Its system text."""

    @property
    def source_prefix(self) -> str:
        """Its source prefix."""


@dataclass(frozen=True, slots=True)
class Taught:
    """System text and source prefix, as one value."""

    system: str | None = None
    """Put first where a conversation has no system text of its own."""
    source_prefix: str = ""
    """Put in front of the first question (ChatGLM-6B, ChatGLM2: of the whole prompt)."""

    @classmethod
    def of(cls, told: Told | None) -> "Taught":
        """Both texts of a recipe's `data` or a card; nothing of None."""
        return cls(told.system, told.source_prefix) if told else cls()

    def begin(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with the system text, where they have none; a turn that only lists tools takes it."""
        own = next((i for i, message in enumerate(messages) if message.role == "system"), None)
        if not self.system:
            return list(messages)
        if own is None:
            return [Message("system", self.system), *messages]
        if own == 0 and not messages[0].content.strip():
            return [replace(messages[0], content=self.system), *messages[1:]]
        return list(messages)


def with_question_prefix(messages: Sequence[Message], source_prefix: str) -> list[Message]:
    """The messages with a text in front of the first question."""
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    return [
        replace(message, content=source_prefix + message.content) if i == first else message
        for i, message in enumerate(messages)
    ]
