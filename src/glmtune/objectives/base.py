"""What an objective is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from glmtune.data.batches import Batch
from glmtune.models.protocol import CausalLM


class ObjectiveModule(nn.Module, ABC):
    """What is minimised: from a batch to a sum, which the loop divides by the items of a whole step."""

    def __init__(self, model: CausalLM) -> None:
        """`model`: a causal language model of transformers' kind, or one wrapped by PEFT."""
        super().__init__()
        self.model = model

    @abstractmethod
    def weight(self, batch: Batch) -> int:
        """How many items the loss of this batch sums over."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Summed (not averaged) loss over those items, in fp32. Shape ()."""

    def forward(self, batch: Batch) -> Tensor:
        """The loss, through whatever is wrapped around this module."""
        return self.loss(batch)
