"""Supervised fine-tuning: next-token cross-entropy on the learned tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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
from glmtune.objectives.cross_entropy import (
    frozen_cross_entropy,
    frozen_likeliest,
    frozen_log_chances,
    is_frozen_product,
    most_frozen_logits,
)
from glmtune.objectives.targets import LIKELIEST, Likeliest, Recorded, Targets, log_chances, with_rest

CHUNK_LOGITS = 2**23
"""Most logits of a head that trains computed at once: 32 MiB in fp32, or 129 positions of ChatGLM3's
vocabulary, 55 of GLM-4's."""


@dataclass(frozen=True, slots=True)
class Nearness:
    """A term of the loss that keeps a model near its base: KL(base || tuned) on a run's own answers."""

    weight: float
    num_sources: int
    """Number of the run's own sources of rows; rows of further ones are answers of the base already."""
    base: Callable[[], AbstractContextManager[None]] | None = None
    """Context in which the model is its base; None where the own rows have the base's distributions."""


class SftObjective(ObjectiveModule):
    """Sum of the cross-entropies of tokens whose `labels` are not -100, or of their recorded distributions.

    Rows go through the model packed, each attending to itself alone, and only positions that predict a
    learned token go through what lies behind the last attention. With a vocabulary of 65,024 or 151,552
    tokens, the logits would be the largest tensor of a step: they are made in parts, and each part's gradient
    is taken in the forward pass, so the logits of a step are never in memory together.
    """

    nearness: Nearness | None = None
    """Added to the loss in training mode, and to no figure but `divergences`."""

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
        """Return the sum of the losses of the batch's learned tokens, in fp32. Shape ()."""
        is_learned = batch.is_learned()
        recorded, nearness = recorded_targets(batch, is_learned), self.nearness if self.training else None
        is_near = self.divergences = None
        if nearness:
            is_near = batch.learned_sources() < nearness.num_sources
            if nearness.base:  # before the model's own pass, whose graph would be in memory meanwhile
                recorded = self._ask_base(nearness.base, batch, recorded, is_near)
        # the logits at a position predict the token after it
        hidden = self._run(batch, is_learned.nonzero()[:, 0] - 1)
        head = causal_of(self.model).get_output_embeddings()
        wide = wide_type(hidden.dtype)
        factors = self.token_weights(batch, hidden.detach())
        if recorded is None and factors is not None:
            recorded = Recorded.certain(batch.labels[is_learned], 1)
        if recorded is None:
            self.losses = hidden.new_empty(len(hidden), dtype=wide)
            return summed_cross_entropy(hidden, batch.labels[is_learned], head, by_token=self.losses)
        targets = recorded.as_targets(wide)
        if nearness and is_near is not None:
            targets = recorded.beside_labels(nearness.weight, is_near, wide)
        if factors is not None:
            targets = Targets(targets.ids, targets.weights * factors[:, None])
        found = hidden.new_empty(targets.weights.shape, dtype=wide)
        loss = summed_cross_entropy(hidden, targets, head, by_token=found)
        self.losses = targets.loss(found)
        if is_near is not None:
            self.losses = torch.where(is_near, -found[:, 0], self.losses)
            self.divergences = recorded.divergence(found)[is_near]
        return loss

    def token_weights(self, batch: Batch, hidden: Tensor) -> Tensor | None:
        """Return factors (L,) of the learned tokens' losses, None for 1 each: a hook for subclasses.

        hidden: the last hidden states (L, C) that predict these tokens, without gradient.
        """
        return None

    def _run(self, batch: Batch, keep: Tensor) -> Tensor:
        """Return the last hidden states (L, C) of the tokens at `keep`."""
        rows, positions = Rows(batch.bounds), batch.position_ids
        if positions is None:
            positions = count_positions_by_row(self.model, batch.input_ids, rows)
        return self._by_row.run(rows, batch.input_ids, positions, keep)

    @torch.no_grad()
    def _ask_base(
        self,
        base: Callable[[], AbstractContextManager[None]],
        batch: Batch,
        recorded: Recorded | None,
        is_near: Tensor,
    ) -> Recorded:
        """Return the distributions with the base's for the tokens that are kept near it."""
        is_learned, mode = batch.is_learned(), self.model.training
        labels, at = batch.labels[is_learned], is_near.nonzero()[:, 0]
        predicting = is_learned.nonzero()[at, 0] - 1
        with base():
            self.model.eval()  # without dropout
            try:
                # also for no token: where processes share the weights, each must take part
                hidden = self._run(batch, predicting)
                head = causal_of(self.model).get_output_embeddings()
                ids, log_probs = likeliest(hidden, labels[at], head, LIKELIEST)
            finally:
                self.model.train(mode)
        log_probs = with_rest(log_probs)
        if len(at) == len(labels):
            return Recorded(ids, log_probs)
        if recorded is None:
            recorded = Recorded.certain(labels, LIKELIEST)
        return Recorded(recorded.ids.index_copy(0, at, ids), recorded.log_probs.index_copy(0, at, log_probs))


def recorded_targets(batch: Batch, is_learned: Tensor) -> Recorded | None:
    """Return the distributions of the batch's learned tokens; None where no row has some."""
    if batch.target_ids is None or batch.target_log_probs is None:
        return None
    # they have a line for each label, one that is not learned too
    at = is_learned[batch.labels != -100]
    return Recorded(batch.target_ids[at], with_rest(batch.target_log_probs[at]))


def summed_cross_entropy(
    hidden: Tensor, targets: Tensor | Targets, head: nn.Module, by_token: Tensor | None = None
) -> Tensor:
    """Return the sum of the cross-entropies of `head(hidden)` (N, V) against targets, at least in fp32.

    The logits are never in memory together. It is differentiable in hidden (N, C) and in the head's trainable
    weights. `by_token` is filled with the cross-entropies (N,) of labels, or with the log probabilities
    (N, K + 1) that distributions are of.
    """
    if by_token is None:
        size = targets.weights.shape if isinstance(targets, Targets) else targets.shape
        by_token = hidden.new_empty(size, dtype=wide_type(hidden.dtype))
    head_weights = [p for p in head.parameters() if p.requires_grad]
    if torch.is_grad_enabled():
        apply: Callable[..., Tensor] = _Loss.apply
        # the weights are passed as arguments of their own: autograd gives gradients only to arguments
        return apply(hidden, targets, head, by_token, *head_weights)
    if is_frozen_product(head):
        found, _ = _of_frozen(hidden, targets, cast("nn.Linear", head), needs_gradient=False)
        return _loss(targets, by_token.copy_(found)).sum()
    for part in chunks(len(hidden), head):
        by_token[part] = _of_chunk(hidden[part], targets[part], head)
    return _loss(targets, by_token).sum()


def _loss(targets: Tensor | Targets, found: Tensor) -> Tensor:
    """Return the losses (N,) of what has been found about the targets."""
    return targets.loss(found) if isinstance(targets, Targets) else found


def _of_frozen(
    hidden: Tensor, targets: Tensor | Targets, head: nn.Linear, *, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    if isinstance(targets, Targets):
        return frozen_log_chances(hidden, targets, head, needs_gradient=needs_gradient)
    return frozen_cross_entropy(hidden, targets, head, needs_gradient=needs_gradient)


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
        targets: Tensor | Targets,
        head: nn.Module,
        by_token: Tensor,
        *head_weights: Tensor,
    ) -> Tensor:
        if is_frozen_product(head):
            found, gradient = _of_frozen(hidden, targets, cast("nn.Linear", head), needs_gradient=True)
            assert gradient is not None
            ctx.save_for_backward(gradient.mul_(_HEADROOM).to(hidden.dtype))
            return _loss(targets, by_token.copy_(found)).sum()
        hidden_gradient = torch.empty_like(hidden)
        head_gradients = [torch.zeros_like(p) for p in head_weights]
        for part in chunks(len(hidden), head):
            chunk = hidden.detach()[part]
            by_token[part], hidden_gradient[part], *rest = _differentiate(
                chunk, targets[part], head, head_weights
            )
            for known, new in zip(head_gradients, rest, strict=True):
                known += new
        ctx.save_for_backward(hidden_gradient, *head_gradients)
        return _loss(targets, by_token).sum()

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


@torch.no_grad()
def likeliest(hidden: Tensor, labels: Tensor, head: nn.Module, number: int) -> tuple[Tensor, Tensor]:
    """Return each label and the likeliest other ids of `head(hidden)`, and their log probabilities.

    hidden: (N, C), labels: (N,); both results are (N, number). The logits are never in memory together.
    """
    if is_frozen_product(head):
        return frozen_likeliest(hidden, labels, cast("nn.Linear", head), number)
    parts = [
        _likeliest_of_chunk(hidden[part], labels[part], head, number) for part in chunks(len(hidden), head)
    ]
    if not parts:
        return labels.new_zeros(0, number), hidden.new_zeros(0, number, dtype=wide_type(hidden.dtype))
    ids, log_probs = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(log_probs)


def _likeliest_of_chunk(
    hidden: Tensor, labels: Tensor, head: nn.Module, number: int
) -> tuple[Tensor, Tensor]:
    logits = head(hidden)
    logits = logits.to(wide_type(logits.dtype))
    most = Likeliest(labels, number, logits.dtype)
    most.add(logits, 0)
    return most.ids, most.log_chances()


def most_logits(head: nn.Module, device: torch.device) -> int:
    """Return the most logits that are computed at once."""
    return most_frozen_logits(device) if is_frozen_product(head) else CHUNK_LOGITS


def bytes_per_logit(head: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes that each of them takes in a head that computes in `dtype`, with its gradient."""
    if not is_frozen_product(head):
        return 16  # the logits, their fp32, the softmax kept for the gradient, and the gradient
    # the exponentials take the logits' place, and are cast for a product in half precision
    return wide_type(dtype).itemsize + (dtype.itemsize if dtype.itemsize < 4 else 0)


def chunks(num_positions: int, head: nn.Module) -> Iterator[slice]:
    """Yield equal parts of positions, each of at most `CHUNK_LOGITS` logits."""
    most = max(1, CHUNK_LOGITS // cast("nn.Linear", head).out_features)
    # equal ones: a last one of a few positions would take the time to read the whole head
    size = ceil(num_positions / ceil(num_positions / most)) if num_positions else 1
    for start in range(0, num_positions, size):
        yield slice(start, start + size)


def _of_chunk(hidden: Tensor, targets: Tensor | Targets, head: nn.Module) -> Tensor:
    """Return what `by_token` of `summed_cross_entropy` is filled with."""
    logits = head(hidden)
    logits = logits.to(wide_type(logits.dtype))
    if not isinstance(targets, Targets):
        return nn.functional.cross_entropy(logits, targets, reduction="none")
    rest = logits.scatter(1, targets.ids, -torch.inf).logsumexp(dim=1, keepdim=True)
    return log_chances(torch.cat((logits.gather(1, targets.ids), rest), dim=1))


def _differentiate(
    chunk: Tensor, targets: Tensor | Targets, head: nn.Module, head_weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return what was found of a chunk, and the gradients times `_HEADROOM` of the chunk and the weights."""
    with torch.enable_grad():  # autograd disables gradients inside `forward`
        leaf = chunk.detach().requires_grad_()  # of a small graph of its own, freed before the next chunk
        found = _of_chunk(leaf, targets, head)
        loss = _loss(targets, found).sum() * _HEADROOM
        return found.detach(), *torch.autograd.grad(loss, [leaf, *head_weights])
