"""Supervised fine-tuning: next-token cross-entropy on the learned tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor, nn

from glmtune.data.batches import Batch
from glmtune.models.frozen_linear import FrozenLinear, multiply, multiply_back
from glmtune.models.fused import computing_type, wide_type, without_autocast
from glmtune.models.packed import ByRow, Rows, count_positions_by_row
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import causal_of
from glmtune.objectives.base import ObjectiveModule
from glmtune.objectives.cross_entropy import is_frozen_product, turn_into_gradient

CHUNK_LOGITS = 2**23
"""Most logits computed at once: 32 MiB in fp32, or 129 positions of ChatGLM3's vocabulary, 55 of GLM-4's."""

CAST_CHUNK_LOGITS = 2**24
"""The same for a head held in another type than it computes in: casting it twice a chunk takes 7 % of the
time of twice as many positions on an AVX-512 core, and 14 % of CHUNK_LOGITS' own."""


class SftObjective(ObjectiveModule):
    """Sum of the cross-entropies of tokens whose `labels` are not -100.

    Rows go through the model packed, each attending to itself alone, and only positions that predict a
    learned token go through what lies behind the last attention. With a vocabulary of 65,024 or 151,552
    tokens, the logits are the largest tensor of a step: they are made in chunks, and each chunk's gradient is
    taken in the forward pass, so the logits of a step are never in memory together.
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
        return summed_cross_entropy(hidden, batch.labels[is_learned], head)


def summed_cross_entropy(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """Return the sum of the cross-entropies of `head(hidden)` (N, V) against targets (N,), at least in fp32.

    The sum is computed in chunks of positions. It is differentiable in hidden (N, C) and in the head's
    trainable weights.
    """
    head_weights = [p for p in head.parameters() if p.requires_grad]
    if torch.is_grad_enabled():
        apply: Callable[..., Tensor] = _ChunkedLoss.apply
        # the weights are passed as arguments of their own: autograd gives gradients only to arguments
        return apply(hidden, targets, head, *head_weights)
    total = hidden.new_zeros((), dtype=wide_type(hidden.dtype))
    for chunk, chunk_targets in _chunks(hidden, targets, head):
        total += _chunk_loss(chunk, chunk_targets, head)
    return total


_HEADROOM = 1024.0
"""Factor of the loss when a chunk's gradient is taken, lest small gradients underflow in an fp16 head. As a
power of two it changes no other bit."""


class _ChunkedLoss(torch.autograd.Function):
    """A sum of cross-entropies that takes each chunk's gradient in the forward pass.

    The usual backward pass would need the logits of all chunks. Since the loss is a sum, its gradient is each
    chunk's gradient times the gradient that arrives from above, a single number.
    """

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch types the context so too
        hidden: Tensor,
        targets: Tensor,
        head: nn.Module,
        *head_weights: Tensor,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=wide_type(hidden.dtype))
        hidden_gradient = torch.empty_like(hidden)
        head_gradients = [torch.zeros_like(p) for p in head_weights]
        differentiate = _differentiate_frozen if is_frozen_product(head) else _differentiate
        start = 0
        for chunk, chunk_targets in _chunks(hidden.detach(), targets, head):
            loss, chunk_gradient, *rest = differentiate(chunk, chunk_targets, head, head_weights)
            hidden_gradient[start : start + len(chunk)] = chunk_gradient
            for known, new in zip(head_gradients, rest, strict=True):
                known += new
            total += loss
            start += len(chunk)
        ctx.save_for_backward(hidden_gradient, *head_gradients)
        return total

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
            *(scale * gradient for gradient in head_gradients),
        )


def most_logits(head: nn.Module, dtype: torch.dtype) -> int:
    """Return the most logits that are computed at once in `dtype`."""
    is_cast = isinstance(head, FrozenLinear) and head.weight.dtype != dtype
    logits = CAST_CHUNK_LOGITS if is_cast else CHUNK_LOGITS
    # a frozen product's logits stay in their type: twice as many in as many bytes
    return logits * (4 // min(dtype.itemsize, 4)) if is_frozen_product(head) else logits


def bytes_per_logit(head: nn.Module, dtype: torch.dtype, device: torch.device) -> int:
    """Return the bytes that each of them takes, with what its gradient is made of."""
    if not is_frozen_product(head):
        return 16  # the logits, their fp32, the softmax kept for the gradient, and the gradient
    # the gradient takes the logits' place; half types are widened, on a CPU in blocks of the cache
    return dtype.itemsize + (4 if device.type != "cpu" and dtype.itemsize < 4 else 0)


def _chunks(hidden: Tensor, targets: Tensor, head: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    logits = most_logits(head, computing_type(hidden))
    most = max(1, logits // cast("nn.Linear", head).out_features)
    # equal ones: a last one of a few positions would take the time to read the whole head
    size = ceil(len(hidden) / ceil(len(hidden) / most)) if len(hidden) else 1
    for start in range(0, len(hidden), size):
        yield hidden[start : start + size], targets[start : start + size]


def _chunk_loss(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    logits = head(hidden)
    return nn.functional.cross_entropy(logits.to(wide_type(logits.dtype)), targets, reduction="sum")


def _differentiate(
    chunk: Tensor, targets: Tensor, head: nn.Module, head_weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return a chunk's loss, and its gradients times `_HEADROOM`: of the chunk and of the head's weights."""
    with torch.enable_grad():  # autograd disables gradients inside `forward`
        leaf = chunk.detach().requires_grad_()  # of a small graph of its own, freed before the next chunk
        loss = _chunk_loss(leaf, targets, head)
        return loss.detach(), *torch.autograd.grad(loss * _HEADROOM, [leaf, *head_weights])


def _differentiate_frozen(
    chunk: Tensor, targets: Tensor, head: nn.Module, _: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Do as `_differentiate` for a head that `is_frozen_product`, without a copy of the logits."""
    layer, dtype = cast("nn.Linear", head), computing_type(chunk)
    with without_autocast(chunk.device):
        logits = multiply(layer, chunk.to(dtype))
        loss = turn_into_gradient(logits, targets, scale=_HEADROOM)
        return loss, multiply_back(layer, logits)
