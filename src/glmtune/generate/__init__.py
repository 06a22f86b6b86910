"""Answers from a model."""

from glmtune.generate.chat import Chat, answer, encode_conversation, stream_text
from glmtune.generate.engine import complete, decode
from glmtune.generate.sampling import Sampling

__all__ = [
    "Chat",
    "Sampling",
    "answer",
    "complete",
    "decode",
    "encode_conversation",
    "stream_text",
]
