"""Answers from a model."""

from glmtune.generate.chat import Chat, answer, answer_text, stream_text
from glmtune.generate.engine import complete, decode
from glmtune.generate.sampling import Sampling

__all__ = ["Chat", "Sampling", "answer", "answer_text", "complete", "decode", "stream_text"]
