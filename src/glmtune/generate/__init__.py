"""Generation: an engine that answers batches of requests, and functions on top of it."""

from glmtune.generate.compute import choose_compute, pick_compute
from glmtune.generate.decoding import complete, decode
from glmtune.generate.engine import Engine
from glmtune.generate.requests import Request
from glmtune.generate.sampling import Sampling
from glmtune.generate.text import complete_texts, stream_text

__all__ = [
    "Engine",
    "Request",
    "Sampling",
    "choose_compute",
    "complete",
    "complete_texts",
    "decode",
    "pick_compute",
    "stream_text",
]
