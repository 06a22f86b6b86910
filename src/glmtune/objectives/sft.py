"""Supervised fine-tuning: next-token cross-entropy on the learned tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor, nn

from glmtune.data.batches import Batch
from glmtune.models.fused import wide_type
from glmtune.models.packed import ByRow, Rows, count_positions_by_row
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import causal_of
from glmtune.objectives.base import ObjectiveModule
from glmtune.objectives.cross_entropy import frozen_cross_entropy, is_frozen_product, most_frozen_logits

CHUNK_LOGITS = 2**23
"""Most logits of a head that trains computed at once: 32 MiB in fp32, or 129 positions of ChatGLM3's
vocabulary, 55 of GLM-4's."""


class SftObjective(ObjectiveModule):
    """Sum of the cross-entropies of tokens whose `labels` are not -100.

    Rows go through the model packed, each attending to itself alone, and only positions that predict a
    learned token go through what lies behind the last attention. With a vocabulary of 65,024 or 151,552
    tokens, the logits would be the largest tensor of a step: they are made in parts, and each part's gradient
    is taken in the forward pass, so the logits of a step are never in memory together.
    """

    def __init__(self, model: CausalLM) -> None:
        """Take a causal language model, also one wrapped by PEFT."""
        super().__init__(model)
        self._by_row = ByRow(model)

    def passes(self) -> AbstractContextManager[None]:
        """Return the context that holds the attention by row until the last backward pass."""
        return self._by_row.passes()

    def weight(self, batch: Batch) -> int:
        """Return the number of learned tokens in the batch."""
        return int(batch.is_learned().sum())

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of the cross-entropies of the batch's learned tokens, in fp32. Shape ()."""
        rows, is_learned = Rows(batch.bounds), batch.is_learned()
        positions = batch.position_ids
        if positions is None:
            positions = count_positions_by_row(self.model, batch.input_ids, rows)
        # the logits at a position predict the token after it
        predicting = is_learned.nonzero()[:, 0] - 1
        hidden = self._by_row.run(rows, batch.input_ids, positions, predicting)  # (L, C)
        head = causal_of(self.model).get_output_embeddings()
        self.losses = hidden.new_empty(len(predicting), dtype=wide_type(hidden.dtype))
        return summed_cross_entropy(hidden, batch.labels[is_learned], head, by_token=self.losses)


def summed_cross_entropy(
    hidden: Tensor, targets: Tensor, head: nn.Module, by_token: Tensor | None = None
) -> Tensor:
    """Return the sum of the cross-entropies of `head(hidden)` (N, V) against targets (N,), at least in fp32.

    The logits are never in memory together. It is differentiable in hidden (N, C) and in the head's trainable
    weights. `by_token` (N,) is filled with the cross-entropies.
    """
    if by_token is None:
        by_token = hidden.new_empty(len(targets), dtype=wide_type(hidden.dtype))
    head_weights = [p for p in head.parameters() if p.requires_grad]
    if torch.is_grad_enabled():
        apply: Callable[..., Tensor] = _Loss.apply
        # the weights are passed as arguments of their own: autograd gives gradients only to arguments
        return apply(hidden, targets, head, by_token, *head_weights)
    if is_frozen_product(head):
        losses, _ = frozen_cross_entropy(hidden, targets, cast("nn.Linear", head), needs_gradient=False)
        return by_token.copy_(losses).sum()
    for part in _chunks(len(targets), head):
        by_token[part] = _chunk_losses(hidden[part], targets[part], head)
    return by_token.sum()


_HEADROOM = 1024.0
"""Factor of the loss when a gradient is taken, lest small ones underflow in fp16. As a power of two it
changes no other bit."""


class _Loss(torch.autograd.Function):
    """A sum of cross-entropies whose gradient is taken in the forward pass.

    The usual backward pass would need all logits. Since the loss is a sum, its gradient is each part's
    gradient times the gradient that arrives from above, a single number.
    """

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch types the context so too
        hidden: Tensor,
        targets: Tensor,
        head: nn.Module,
        by_token: Tensor,
        *head_weights: Tensor,
    ) -> Tensor:
        if is_frozen_product(head):
            losses, gradient = frozen_cross_entropy(
                hidden, targets, cast("nn.Linear", head), needs_gradient=True
            )
            assert gradient is not None
            ctx.save_for_backward(gradient.mul_(_HEADROOM).to(hidden.dtype))
            return by_token.copy_(losses).sum()
        hidden_gradient = torch.empty_like(hidden)
        head_gradients = [torch.zeros_like(p) for p in head_weights]
        for part in _chunks(len(targets), head):
            chunk = hidden.detach()[part]
            by_token[part], hidden_gradient[part], *rest = _differentiate(
                chunk, targets[part], head, head_weights
            )
            for known, new in zip(head_gradients, rest, strict=True):
                known += new
        ctx.save_for_backward(hidden_gradient, *head_gradients)
        return by_token.sum()

    @staticmethod
    def backward(
        ctx: Any,  # Any: as in `forward`
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        (scale,) = gradients
        hidden_gradient, *head_gradients = ctx.saved_tensors
        scale = scale / _HEADROOM
        return (
            # in fp32, and rounded once
            (scale * hidden_gradient.to(scale.dtype)).to(hidden_gradient.dtype),
            None,  # targets
            None,  # head
            None,  # by_token
            *(scale * gradient for gradient in head_gradients),
        )


def most_logits(head: nn.Module, device: torch.device) -> int:
    """Return the most logits that are computed at once."""
    return most_frozen_logits(device) if is_frozen_product(head) else CHUNK_LOGITS


def bytes_per_logit(head: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes that each of them takes in a head that computes in `dtype`, with its gradient."""
    if not is_frozen_product(head):
        return 16  # the logits, their fp32, the softmax kept for the gradient, and the gradient
    # the exponentials take the logits' place, and are cast for a product in half precision
    return wide_type(dtype).itemsize + (dtype.itemsize if dtype.itemsize < 4 else 0)


def _chunks(num_positions: int, head: nn.Module) -> Iterator[slice]:
    most = max(1, CHUNK_LOGITS // cast("nn.Linear", head).out_features)
    # equal ones: a last one of a few positions would take the time to read the whole head
    size = ceil(num_positions / ceil(num_positions / most)) if num_positions else 1
    for start in range(0, num_positions, size):
        yield slice(start, start + size)


def _chunk_losses(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    logits = head(hidden)
    return nn.functional.cross_entropy(logits.to(wide_type(logits.dtype)), targets, reduction="none")


def _differentiate(
    chunk: Tensor, targets: Tensor, head: nn.Module, head_weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return a chunk's losses, and their sum's gradients times `_HEADROOM`: of the chunk and the weights."""
    with torch.enable_grad():  # autograd disables gradients inside `forward`
        leaf = chunk.detach().requires_grad_()  # of a small graph of its own, freed before the next chunk
        losses = _chunk_losses(leaf, targets, head)
        return losses.detach(), *torch.autograd.grad(losses.sum() * _HEADROOM, [leaf, *head_weights])
