"""Next-token cross-entropy on the learned tokens."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from glmtune.data.batches import Batch
from glmtune.models.wrapped import causal_of
from glmtune.objectives.base import ObjectiveModule

CHUNK_LOGITS = 2**23
"""Logits computed at once: 32 MiB in fp32, 129 positions of ChatGLM3's vocabulary, 55 of GLM-4's."""


class SftObjective(ObjectiveModule):
    """Cross-entropy where `labels` is not -100, summed.

    With a vocabulary of 65,024 or 151,552 the logits are the largest tensor of a step. So only the positions
    that predict a learned token go through the output layer, in chunks, and each chunk's gradient is taken at
    once: the logits of a step never exist together.
    """

    def weight(self, batch: Batch) -> int:
        """Learned tokens of the batch."""
        return int(batch.is_learned().sum())

    def loss(self, batch: Batch) -> Tensor:
        """Their cross-entropies."""
        causal, inputs = causal_of(self.model), batch.padded()
        targets = inputs.pop("labels")[:, 1:]
        hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state  # (B, T, C)
        is_learned = targets != -100
        return summed_cross_entropy(
            hidden[:, :-1][is_learned], targets[is_learned], causal.get_output_embeddings()
        )


def summed_cross_entropy(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """Sum of the cross-entropies of `head(hidden)` (N, V) against targets (N,), in fp32, in chunks.

    Differentiable in hidden (N, C) and in the head's trainable weights.
    """
    trained = [p for p in head.parameters() if p.requires_grad]
    if torch.is_grad_enabled():
        apply: Callable[..., Tensor] = _ChunkedLoss.apply
        return apply(hidden, targets, head, *trained)
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, wanted in _chunks(hidden, targets, head):
        total += _chunk_loss(part, wanted, head)
    return total


_HEADROOM = 1024.0
"""Each chunk's gradient is taken of the loss times this, lest an fp16 head lose its smallest parts. A power
of two changes no bit otherwise."""


class _ChunkedLoss(torch.autograd.Function):
    """Takes the gradient of each chunk in the forward pass, and scales it in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Module, *trained: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.zeros_like(hidden)
        head_gradients = [torch.zeros_like(p) for p in trained]
        start = 0
        for part, part_targets in _chunks(hidden.detach(), targets, head):
            with torch.enable_grad():
                part = part.requires_grad_()
                loss = _chunk_loss(part, part_targets, head)
                part_gradient, *rest = torch.autograd.grad(loss * _HEADROOM, [part, *trained])
            gradient[start : start + len(part)] = part_gradient
            for known, new in zip(head_gradients, rest, strict=True):
                known += new
            total += loss.detach()
            start += len(part)
        ctx.save_for_backward(gradient, *head_gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = gradients
        hidden, *trained = ctx.saved_tensors
        scale = scale / _HEADROOM
        return (
            (scale * hidden.float()).to(hidden.dtype),
            None,
            None,
            *(scale * gradient for gradient in trained),
        )


def _chunks(hidden: Tensor, targets: Tensor, head: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK_LOGITS // cast("nn.Linear", head).out_features)
    for start in range(0, len(hidden), size):
        yield hidden[start : start + size], targets[start : start + size]


def _chunk_loss(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")
