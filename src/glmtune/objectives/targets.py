"""Distributions over the vocabulary by few numbers: those of some ids, and of all others as one.

Shapes: L positions, V vocabulary, K listed ids of a position; b logits of a part of the vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from glmtune.data.batches import certain_targets

LIKELIEST = 20
"""Ids recorded of each position, the label among them."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Ids that L positions learn by weights, in place of one label each; the weights need not add up to 1."""

    ids: Tensor
    """(L, K); those of a position differ from one another."""
    weights: Tensor
    """Of the ids, and last of all others together; (L, K + 1)."""

    def __getitem__(self, part: slice) -> "Targets":
        """Return those of some positions."""
        return Targets(self.ids[part], self.weights[part])

    def loss(self, log_chances: Tensor) -> Tensor:
        """Return the weighted cross-entropies (L,) of log probabilities (L, K + 1)."""
        return -(self.weights * log_chances).sum(dim=1)

    def gradient(self, log_chances: Tensor) -> Tensor:
        """Return the loss's gradient (L, K + 1) at the logits of the ids and at the rest's log sum."""
        weights, chances = self.weights, log_chances.exp()
        gradient = weights.sum(dim=1, keepdim=True) * chances - weights
        # of the likeliest, whose chance may be so near 1 that the difference from it is lost: by the others'
        at = log_chances.argmax(dim=1, keepdim=True)
        others, weight = (x.scatter(1, at, 0).sum(dim=1, keepdim=True) for x in (chances, weights))
        total = weights.sum(dim=1, keepdim=True)
        return gradient.scatter_(1, at, weight - total * others)


def log_chances(logits: Tensor) -> Tensor:
    """Return the log probabilities of logits (L, E), exact also where a probability is near 1."""
    highest, at = logits.max(dim=1, keepdim=True)
    others = logits.scatter(1, at, -torch.inf).logsumexp(dim=1, keepdim=True)
    own = functional.logsigmoid(highest - others)
    return (logits - (highest - own)).scatter(1, at, own)


def with_rest(log_probs: Tensor) -> Tensor:
    """Return recorded log probabilities (L, K) with that of all other ids behind them, (L, K + 1) in float64.

    -inf where nothing is left.
    """
    # 1 - sum would lose what is left beside a probability near 1: the difference of that from 1 is exact
    log_probs = log_probs.double()
    highest, at = log_probs.max(dim=1, keepdim=True)
    others = log_probs.exp().scatter_(1, at, 0).sum(dim=1, keepdim=True)
    rest = (-torch.expm1(highest) - others).clamp_(min=0)
    return torch.cat((log_probs, rest.log()), dim=1)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Distributions that were recorded of L positions."""

    ids: Tensor
    """(L, K)"""
    log_probs: Tensor
    """Of the ids, and last of all others together; (L, K + 1) in float64."""

    @classmethod
    def certain(cls, labels: Tensor, number: int) -> "Recorded":
        """Return distributions over `number` ids in which the labels (L,) are certain."""
        ids, log_probs = certain_targets(labels, number)
        return cls(ids, with_rest(log_probs))

    def as_targets(self, dtype: torch.dtype) -> Targets:
        """Return the distributions as what is learned, with weights in a type."""
        return Targets(self.ids, self.log_probs.exp().to(dtype))

    def beside_labels(self, weight: float, is_near: Tensor, dtype: torch.dtype) -> Targets:
        """Return the distributions as what is learned: where `is_near` (L,), by a weight, beside the label.

        The label is the first id.
        """
        weights = self.log_probs.exp()
        weights = torch.where(is_near[:, None], weight * weights, weights)
        weights[:, 0] += is_near
        return Targets(self.ids, weights.to(dtype))

    def divergence(self, log_chances: Tensor) -> Tensor:
        """Return the KL divergences (L,) from these distributions to others of the same ids, (L, K + 1).

        In float64; never more than over the whole vocabulary, since the rest is taken as one.
        """
        chances = self.log_probs.exp()
        ratios = torch.where(chances > 0, self.log_probs - log_chances.double(), 0)
        return (chances * ratios).sum(dim=1)


class Likeliest:
    """The label of each position and the likeliest other ids, of logits that come by parts."""

    def __init__(self, labels: Tensor, number: int, dtype: torch.dtype) -> None:
        """Take the labels (L,), and the number K of ids to keep, no more than the vocabulary has."""
        size = (len(labels), number)
        self.ids = labels.new_zeros(size)
        """The label, then other ids from the likeliest to the least; (L, K)."""
        self._labels, self._said = labels[:, None], labels.new_zeros((len(labels), 1), dtype=dtype)
        self._best = torch.full(size, -torch.inf, dtype=dtype, device=labels.device)
        self._rest = torch.full_like(self._said, -torch.inf)

    def add(self, logits: Tensor, start: int) -> None:
        """Take the logits (L, b) of the ids from `start` on; changes them."""
        width, number = logits.shape[1], self.ids.shape[1]
        is_here = (self._labels >= start) & (self._labels < start + width)
        at = (self._labels - start).clamp_(0, width - 1)
        found = logits.gather(1, at)
        self._said = torch.where(is_here, found, self._said)
        logits.scatter_(1, at, found.masked_fill_(is_here, torch.inf))  # so that it is kept, and first
        values, chosen = logits.topk(min(number, width), dim=1)
        # what is not chosen is added up, and never found by a difference
        logits.scatter_(1, chosen, -torch.inf)
        highest = logits.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
        others = logits.sub_(highest).exp_().sum(dim=1, keepdim=True).log_().add_(highest)
        both, ids = torch.cat((self._best, values), dim=1), torch.cat((self.ids, chosen + start), dim=1)
        self._best, chosen = both.topk(number, dim=1)
        self.ids = ids.gather(1, chosen)
        others = torch.cat((others, both.scatter_(1, chosen, -torch.inf), self._rest), dim=1)
        self._rest = others.logsumexp(dim=1, keepdim=True)

    def log_chances(self) -> Tensor:
        """Return the log probabilities of `ids`, (L, K)."""
        return log_chances(torch.cat((self._said, self._best[:, 1:], self._rest), dim=1))[:, :-1]
