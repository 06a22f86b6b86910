"""Base class of training objectives."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from glmtune.data.batches import Batch
from glmtune.models.protocol import CausalLM


class ObjectiveModule(nn.Module, ABC):
    """A loss over batches, as a sum that the training loop divides by the items of the whole step."""

    def __init__(self, model: CausalLM) -> None:
        """Take a causal language model, also one wrapped by PEFT."""
        super().__init__()
        self.model = model
        self.losses: Tensor | None = None
        """The losses of the last batch's items in order, (items,), without gradient; None if not kept."""
        self.divergences: Tensor | None = None
        """KL divergences from the base of those of them that are kept near it; None if none is."""

    @abstractmethod
    def weight(self, batch: Batch) -> int:
        """Return the number of items, such as learned tokens, that the batch's loss sums over."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of the batch, summed over its items and not averaged, in fp32. Shape ()."""

    def passes(self) -> AbstractContextManager[None]:
        """Return the context that a batch's forward and backward passes run in, one or several batches'."""
        return nullcontext()

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss; DistributedDataParallel and autocast wrap this method."""
        return self.loss(batch)
