"""The decoder: token ids in, token ids out, several prompts at once.

Used by chat, evaluation and the samples of a training run; `model.generate` is its oracle in the tests.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from glmtune.generate.sampling import Sampling, next_tokens
from glmtune.models.positions import positions_of


@torch.inference_mode()
def decode(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, *, stop_ids: Collection[int]
) -> Iterator[list[tuple[int, int]]]:
    """Yield, step by step, the new (row, token id) pairs; the stop token that ends a row is among them.

    A row leaves the batch when it stops, so the slowest answer does not slow down the others' steps more
    than it must. Prompts are padded on the left and the model's own rules count positions from the first
    real token, which makes a batch equal to its rows one by one.
    """
    was_training = model.training
    model.eval()
    try:
        yield from _decode(model, prompts, sampling, frozenset(stop_ids))
    finally:
        model.train(was_training)


def complete(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, *, stop_ids: Collection[int]
) -> list[list[int]]:
    """The whole answers, stop tokens included."""
    answers: list[list[int]] = [[] for _ in prompts]
    for pairs in decode(model, prompts, sampling, stop_ids=stop_ids):
        for row, token in pairs:
            answers[row].append(token)
    return answers


def _decode(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, stop_ids: frozenset[int]
) -> Iterator[list[tuple[int, int]]]:
    device = next(model.parameters()).device
    generator = None
    if sampling.seed is not None:
        generator = torch.Generator(device).manual_seed(sampling.seed)
    seen, mask = _pad_left(prompts, device)
    rows = list(range(len(prompts)))
    counter = positions_of(model)
    positions, following = counter.count_positions(seen, mask)
    cache = DynamicCache()
    new = seen
    is_padded = bool((mask == 0).any())
    for _ in range(sampling.max_new_tokens):
        out = model(
            input_ids=new,
            attention_mask=mask if is_padded else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        drawn = next_tokens(out.logits[:, -1], seen, sampling, generator)  # (B,)
        tokens = drawn.tolist()
        yield list(zip(rows, tokens, strict=True))
        going = [i for i, token in enumerate(tokens) if token not in stop_ids]
        if not going:
            return
        seen = torch.cat([seen, drawn[:, None]], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(tokens), 1)], dim=1)
        if len(going) < len(tokens):
            keep = torch.tensor(going, device=device)
            cache.batch_select_indices(keep)
            seen, mask, following = seen[keep], mask[keep], following[keep]
            rows = [rows[i] for i in going]
        new, positions, following = seen[:, -1:], following, counter.advance_positions(following)


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """input_ids and mask, (B, S). Pads take the row's own first id, so that they mean nothing new."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
