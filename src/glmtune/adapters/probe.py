"""The built-in probe: a model's logits of one fixed prompt, few enough to be stored on a card."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glmtune.adapters.card import Probe
from glmtune.conversation import encode_messages
from glmtune.errors import CheckpointError
from glmtune.models.protocol import CausalLM
from glmtune.tokenizers.protocol import Tokenizer

QUESTION = "你好，GLM！\n3 + 4 = ?"
"""Text of the prompt: Chinese, Latin, digits and a line break, so that tokenizers and templates rarely agree.
"""
NUM_LIKELIEST, NUM_SPREAD = 8, 8
"""Numbers of recorded tokens: the base's likeliest, and some spread over the whole vocabulary."""


def encode_probe(tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of the prompt, as chat encodes it."""
    return encode_messages(tokenizer, [{"role": "user", "content": QUESTION}])


def plain_probe(config: Any) -> list[int]:  # Any: transformers' configs carry no types
    """Return token ids valid for every model of this config, for an adapter without a known template."""
    spread = torch.linspace(5, config.vocab_size // 2, 8).long().tolist()
    # ChatGLM-6B finds the start of its answer by these two tokens, and fails without them
    starts = [config.mask_ids[1], config.bos_token_id] if hasattr(config, "mask_ids") else []
    return [*spread, *starts]


def last_logits(model: CausalLM, input_ids: Sequence[int]) -> Tensor:
    """Return the logits (V,) at the last position of a prompt, in fp32 on the CPU."""
    return all_logits(model, input_ids)[-1].clone()  # a view would keep those of all positions


@torch.no_grad()
def all_logits(model: CausalLM, input_ids: Sequence[int]) -> Tensor:
    """Return the logits (T, V) of a prompt in fp32 on the CPU, in evaluation mode and without autocast."""
    was_training = model.training
    model.eval()
    try:
        ids = torch.tensor([list(input_ids)], device=model.device)
        with torch.autocast(model.device.type, enabled=False):
            logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    finally:
        model.train(was_training)
    return logits.float().cpu()


def choose_tokens(logits: Tensor) -> list[int]:
    """Return the likeliest token ids, and some spread over the vocabulary."""
    likeliest: list[int] = logits.topk(NUM_LIKELIEST).indices.tolist()
    spread = torch.linspace(0, len(logits) - 1, NUM_SPREAD).long().tolist()
    return list(dict.fromkeys([*likeliest, *spread]))


def take_probe(input_ids: Sequence[int], base: Tensor, tuned: Tensor) -> Probe:
    """Return the probe to record from both models' logits (V,). Raises CheckpointError for nan or inf."""
    for who, logits in (("the base", base), ("the tuned model", tuned)):
        if not logits.isfinite().all():
            raise CheckpointError(
                f"{who} answers the probe with logits that are not finite, so there is nothing to record",
                hint="open it in a wider type: dtype=fp32; or its weights are damaged",
            )
    tokens = choose_tokens(base)
    return Probe(
        input_ids=list(input_ids), tokens=tokens, base=base[tokens].tolist(), tuned=tuned[tokens].tolist()
    )
