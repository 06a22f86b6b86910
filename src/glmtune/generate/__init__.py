"""Generation: an engine that answers batches of requests, and functions on top of it."""

from functools import partial
from typing import TYPE_CHECKING

from glmtune.generate.compute import choose_compute, pick_compute
from glmtune.generate.decoding import complete, decode
from glmtune.generate.engine import Engine
from glmtune.generate.requests import Request
from glmtune.generate.sampling import Sampling
from glmtune.generate.text import complete_texts, stream_text
from glmtune.renamed import find_renamed

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

if not TYPE_CHECKING:
    __getattr__ = partial(find_renamed, __name__)
