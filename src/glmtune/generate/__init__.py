"""Answers from a model."""

from glmtune.generate.chat import Chat, answer, stream_text
from glmtune.generate.compute import choose_compute, pick_compute
from glmtune.generate.engine import Engine, complete, decode
from glmtune.generate.requests import Request
from glmtune.generate.sampling import Sampling

__all__ = [
    "Chat",
    "Engine",
    "Request",
    "Sampling",
    "answer",
    "choose_compute",
    "complete",
    "decode",
    "pick_compute",
    "stream_text",
]
