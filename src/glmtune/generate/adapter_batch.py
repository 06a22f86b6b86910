"""The protocol of several adapters over one base model, as the engine uses them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from glmtune.models.prefix import PrefixEncoder
from glmtune.models.protocol import CausalLM


@runtime_checkable
class AdapterBatch(Protocol):
    """A model with several adapters, one for each row of a batch, such as `glmtune.Adapters`."""

    model: CausalLM
    """The base model, with all adapters on it."""

    def check_mixable(self, name: str | None) -> None:
        """Raise `ConfigError` for an unknown adapter, and for one that cannot share a batch with others."""

    def prefix_of(self, name: str | None) -> PrefixEncoder | None:
        """Return the prefix of a P-Tuning adapter, None for other kinds."""

    def mixing(self, names: Sequence[str | None], num_tokens: Sequence[int]) -> AbstractContextManager[None]:
        """Inside, a forward pass applies `names[i]` to the `num_tokens[i]` tokens of row i."""
