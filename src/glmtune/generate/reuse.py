"""Prefix caching: keys and values of earlier texts, reused by prompts that begin like them.

The second turn of a chat begins with the first one; prompts share a system message or examples. Reuse is
exact: the same ids under the same weights, adapters and prefix have the same keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import nn

from glmtune.generate.kv_cache import Layer


@dataclass(slots=True)
class _Text:
    """Ids that were computed under an adapter, and their keys and values in every layer."""

    adapter: str | None
    ids: list[int]
    layers: list[Layer]
    is_pinned: bool

    def goes_on_from(self, other: "_Text") -> bool:
        """True if this text begins with the whole other one, under the same adapter."""
        return self.adapter == other.adapter and self.ids[: len(other.ids)] == other.ids


class Reuse:
    """Kept texts in order of use; above the budget the least recently used one is dropped."""

    def __init__(self, num_tokens: int) -> None:
        """`num_tokens`: the budget; pinned texts do not count."""
        self.num_tokens = num_tokens
        self.mark: object = None
        """`mark_model` of the model at the last check; None while nothing is kept and the budget is 0."""
        self._texts: list[_Text] = []

    @property
    def num_held(self) -> int:
        """Number of kept tokens that count against the budget."""
        return sum(len(text.ids) for text in self._texts if not text.is_pinned)

    def check(self, model: nn.Module) -> None:
        """Drop all texts if the model has changed since the last check."""
        if self._texts or self.num_tokens:
            mark = mark_model(model)
            if mark != self.mark:
                self.forget()
            self.mark = mark

    def forget(self) -> None:
        """Drop all texts, pinned ones too."""
        self._texts = []

    def is_pinned(self, ids: Sequence[int], adapter: str | None = None) -> bool:
        """True if a pinned text begins with all of these ids."""
        start = _Text(adapter, list(ids), [], is_pinned=True)
        return any(text.is_pinned and text.goes_on_from(start) for text in self._texts)

    def find(self, ids: Sequence[int], adapter: str | None = None) -> tuple[int, list[Layer]]:
        """Return the length of the longest beginning that a kept text shares with `ids`, and its layers.

        Only texts computed under the same adapter count; None: the model as it is. (0, []) if none is shared.
        """
        shared = [count_shared(text.ids, ids) if text.adapter == adapter else 0 for text in self._texts]
        if not shared or not max(shared):
            return 0, []
        text = self._texts.pop(shared.index(max(shared)))  # to the end: it is the one used last
        self._texts.append(text)
        return max(shared), text.layers

    def keep(
        self,
        model: nn.Module,
        ids: Sequence[int],
        layers: list[Layer],
        *,
        mark: object,
        adapter: str | None = None,
        pin: bool = False,
    ) -> None:
        """Keep a text computed under an adapter, in place of the texts it begins with. `pin`: until `forget`.

        `mark`: `mark_model` when its first id was read. Nothing is kept if the model has changed since.
        """
        if mark_model(model) != mark:
            return
        if mark != self.mark:
            self.forget()
            self.mark = mark
        new = _Text(adapter, list(ids), layers, pin)
        self._texts = [text for text in self._texts if text.is_pinned or not new.goes_on_from(text)] + [new]
        while self.num_held > self.num_tokens:
            self._texts.remove(next(text for text in self._texts if not text.is_pinned))


def count_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common beginning of two texts, in tokens."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def mark_model(model: nn.Module) -> object:
    """Return a value that differs after a weight is replaced or changed in place, or an adapter switched.

    Adapters count by being active, disabled, merged, and by their scale. A change through `.data` goes
    unseen.
    """
    # torch raises `_version` at each change in place; tensors made in inference mode have none
    weights = [(id(p), 0 if p.is_inference() else p._version) for p in model.parameters()]
    layers: list[Any] = [part for part in model.modules() if hasattr(part, "merged_adapters")]  # PEFT's
    adapters = [
        (
            list(part.active_adapters),
            part.disable_adapters,
            list(part.merged_adapters),
            repr(getattr(part, "scaling", None)),
        )
        for part in layers
    ]
    return weights, adapters
