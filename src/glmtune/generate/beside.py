"""Answers of a model in training, beside its gradients and optimizer: samples, replay, report of forgetting.

Their keys and values are to take a quarter of the free memory, and not much in all, so no card is too small
for them: with fewer rows at once they take longer, and say the same. The cache's blocks may double it.
"""

import torch

from glmtune.generate.engine import Engine
from glmtune.models.computing import computes_in
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import causal_of
from glmtune.processor import free_memory

ROWS, SHARE, MOST = 32, 4, 2**29
"""Most answers given together; the part of what is free, and the bytes, that their keys and values may take:
as many as 19,000 tokens of ChatGLM3-6B, or 1,100 of ChatGLM-6B, whose heads share none."""
PREFILL_TOKENS = 512
"""Prompt tokens that are read at once."""


def engine_beside(model: CausalLM) -> Engine:
    """Return an engine for a model in training, by the memory that is free now."""
    free = free_memory(model.device)
    if model.device.type == "cuda":  # torch's reserve is free too
        free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    held = max(1, bytes_held(free) // column_bytes(model))
    return Engine(model, max_rows=ROWS, max_prefill_tokens=PREFILL_TOKENS, max_held_tokens=held)


def bytes_held(free: int) -> int:
    """Return the bytes that keys and values may take with so many free."""
    return min(MOST, free // SHARE)


def column_bytes(model: CausalLM) -> int:
    """Return the bytes of a token's keys and values in all layers."""
    config = causal_of(model).config
    numbers: int = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return numbers * computes_in(model).itemsize
