"""Weights of single answer tokens against forgetting, for the experiments: no setting of a run has them.

`entropy`: each token's loss by the entropy of the model's own distribution there, as a share of the most that
20 ids can have, so that a token which the model is sure of and wrong about moves little. Source: EAFT,
arxiv.org/abs/2601.02151, github.com/PRIS-CV/EAFT.

`likely`: tokens that the base finds very unlikely are left out. Source: arxiv.org/abs/2501.14315. Here the
step's divisor counts them, which scales a step's loss and hardly AdamW's step.

`replay x 3`, or any other number: the losses of replay rows count that often.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from glmtune.adapters.off import without_adapter
from glmtune.data.batches import Batch
from glmtune.models.wrapped import causal_of
from glmtune.objectives import OBJECTIVES, SftObjective
from glmtune.objectives.sft import likeliest
from glmtune.objectives.targets import LIKELIEST

MOST_PERPLEXITY = 100.0
"""Perplexity of a token under the base, 1 / probability, above which it is left out."""


class EntropyObjective(SftObjective):
    """Cross-entropies weighted by the entropy of the 20 likeliest ids, without a gradient of the weights."""

    def token_weights(self, batch: Batch, hidden: Tensor) -> Tensor | None:
        """Return the entropies (L,) of the LIKELIEST likeliest ids as a share of log(LIKELIEST)."""
        if not self.training:
            return None
        head = causal_of(self.model).get_output_embeddings()
        # the label is always among the ids: one more, and without it if it is the least likely of them
        _, log_probs = likeliest(hidden, batch.labels[batch.is_learned()], head, LIKELIEST + 1)
        best = log_probs.topk(LIKELIEST, dim=1).values.log_softmax(dim=1)
        return -(best.exp() * best).sum(dim=1) / math.log(LIKELIEST)


class LikelyObjective(SftObjective):
    """Cross-entropies of the tokens that the base does not find very unlikely; for adapters."""

    def token_weights(self, batch: Batch, hidden: Tensor) -> Tensor | None:
        """Return 1 or 0 for each token, (L,)."""
        if not self.training:
            return None
        every = torch.ones_like(hidden[:, 0], dtype=torch.bool)
        asked = self._ask_base(lambda: without_adapter(self.model), batch, None, every)
        return (asked.log_probs[:, 0] >= -math.log(MOST_PERPLEXITY)).to(hidden.dtype)


class ReplayObjective(SftObjective):
    """Losses of replay rows count `factor` times; of runs whose own rows are one source."""

    factor = 1.0

    def token_weights(self, batch: Batch, hidden: Tensor) -> Tensor | None:
        """Return 1 for each token of the run's own rows, `factor` for one of a replay row, (L,)."""
        if not self.training:
            return None
        return (batch.learned_sources() > 0).to(hidden.dtype) * (self.factor - 1) + 1


KINDS: dict[str, type[SftObjective]] = {"entropy": EntropyObjective, "likely": LikelyObjective} | {
    f"replay x {n}": type(f"Replay{n}", (ReplayObjective,), {"factor": float(n)}) for n in (3, 10, 30)
}


@contextmanager
def weighting(kind: str) -> Iterator[None]:
    """Let runs inside train with a kind of weights, in place of plain cross-entropy."""
    plain = OBJECTIVES["sft"]
    OBJECTIVES["sft"] = lambda model, _: KINDS[kind](model)
    try:
        yield
    finally:
        OBJECTIVES["sft"] = plain
