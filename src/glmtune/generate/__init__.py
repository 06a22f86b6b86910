"""Answers from a model."""

from glmtune.generate.chat import Chat, answer, answer_text, encode_conversation, stream_text
from glmtune.generate.engine import Engine, Request, complete, decode
from glmtune.generate.sampling import Sampling

__all__ = [
    "Chat",
    "Engine",
    "Request",
    "Sampling",
    "answer",
    "answer_text",
    "complete",
    "decode",
    "encode_conversation",
    "stream_text",
]
