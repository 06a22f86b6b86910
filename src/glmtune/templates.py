"""Chat formats: messages -> segments of plain text or named control tokens. One function a format.

Content is only ever a text segment, so a user who types `<|assistant|>` sends seven characters, not a
control token. This module knows strings, not ids: `glmtune.tokenizers` turns segments into ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "observation"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    metadata: str = ""
    """What follows the role on its line: a tool's name in an assistant turn that calls one."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Tool descriptions, in a system turn."""
    loss: bool = True
    """Whether this turn, if it is the assistant's, is learned."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of plain text, or one control token by its official spelling."""

    text: str
    is_control: bool = False
    is_target: bool = False
    """Learned in training: an answer's text, or the token that ends it."""
