"""Next-token cross-entropy on the learned tokens."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


class Objective(Protocol):
    """A sum over items; the loop divides once by the items of the whole step."""

    def weight(self, batch: Batch) -> int:
        """How many items the loss of this batch sums over."""

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed (not averaged) loss over those items, in fp32. Shape ()."""


class Sft:
    """Cross-entropy where `labels` is not -100, summed.

    Only the positions that predict a learned token of some row of the batch go through the output layer:
    with a vocabulary of 65,024 or 151,552 the logits are the largest tensor of a step.
    """

    def weight(self, batch: Batch) -> int:
        """Learned tokens of the batch."""
        return int((batch["labels"][:, 1:] != -100).sum())

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """input_ids, attention_mask, labels: (B, T)."""
        targets = batch["labels"][:, 1:]  # (B, T-1)
        positions = (targets != -100).any(dim=0).nonzero().squeeze(1)  # (P,)
        if not len(positions):  # a share of a step without learned tokens: zero, but with a gradient path
            positions = torch.zeros(1, dtype=torch.long, device=targets.device)
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            logits_to_keep=positions,
            use_cache=False,
        ).logits  # (B, P, V)
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets[:, positions].flatten(), reduction="sum"
        )
