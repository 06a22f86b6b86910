"""What an engine asks of several adapters over one base."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from glmtune.models.prefix import PrefixEncoder
from glmtune.models.protocol import CausalLM


@runtime_checkable
class AdapterBatch(Protocol):
    """A model under which each request may have an adapter of its own, such as `glmtune.Adapters`."""

    model: CausalLM
    """The base, with all adapters on it."""

    def check_mixable(self, name: str | None) -> None:
        """Raise `ConfigError` for a name that is not there, or whose requests must be answered alone."""

    def prefix_of(self, name: str | None) -> PrefixEncoder | None:
        """What a text begins with that is answered under this adapter, if it is a prefix."""

    def mixing(self, names: Sequence[str | None], num_tokens: Sequence[int]) -> AbstractContextManager[None]:
        """Inside, a pass reads so many tokens of each request, each under its adapter."""
