"""The built-in probe: what a model answers to one fixed prompt, in numbers few enough to be kept."""

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
"""Has Chinese, Latin, digits and a line break, so that most ways of encoding differ somewhere in it."""
NUM_LIKELIEST, NUM_SPREAD = 8, 8
"""So many of the base's likeliest tokens are kept, and so many from all over the vocabulary."""


def encode_probe(tokenizer: Tokenizer) -> list[int]:
    """The prompt as chat would send it."""
    return encode_messages(tokenizer, [{"role": "user", "content": QUESTION}])


def plain_probe(config: Any) -> list[int]:
    """Ids that every model of this config takes, for an adapter that no template is known of."""
    spread = torch.linspace(5, config.vocab_size // 2, 8).long().tolist()
    starts = [config.mask_ids[1], config.bos_token_id] if hasattr(config, "mask_ids") else []  # ChatGLM-6B
    return [*spread, *starts]


def last_logits(model: CausalLM, input_ids: Sequence[int]) -> Tensor:
    """The logits at the prompt's end, (V,), as `all_logits` gives them."""
    return all_logits(model, input_ids)[-1]


@torch.no_grad()
def all_logits(model: CausalLM, input_ids: Sequence[int]) -> Tensor:
    """The logits of a row, (T, V) in fp32 on the CPU; the model is put in evaluation mode for it."""
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
    """The likeliest, and some spread over the vocabulary."""
    likeliest: list[int] = logits.topk(NUM_LIKELIEST).indices.tolist()
    spread = torch.linspace(0, len(logits) - 1, NUM_SPREAD).long().tolist()
    return list(dict.fromkeys([*likeliest, *spread]))


def take_probe(input_ids: Sequence[int], base: Tensor, tuned: Tensor) -> Probe:
    """What the card keeps of both models' logits (V,). Raises CheckpointError unless those are finite."""
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
