"""What earlier rows have left: keys and values of texts that a later prompt may begin with.

A second turn of a chat goes on from the first, prompts share a system message or examples in front. What is
found is exact: the same ids under the same weights, adapters and prefix have the same keys and values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import nn

from glmtune.generate.kv_cache import Layer


@dataclass(slots=True)
class _Text:
    adapter: str | None
    ids: list[int]
    layers: list[Layer]
    is_pinned: bool

    def goes_on_from(self, other: "_Text") -> bool:
        """Whether it has all of the other, under the same adapter."""
        return self.adapter == other.adapter and self.ids[: len(other.ids)] == other.ids


class Reuse:
    """Texts in order of use; the one longest unused goes when their tokens are more than the budget."""

    def __init__(self, num_tokens: int) -> None:
        """`num_tokens`: the budget; what is pinned does not count."""
        self.num_tokens = num_tokens
        self.mark: object = None
        """The model's at the last check, if there is anything to keep or kept."""
        self._texts: list[_Text] = []

    @property
    def num_held(self) -> int:
        """Tokens that count against the budget."""
        return sum(len(text.ids) for text in self._texts if not text.is_pinned)

    def check(self, model: nn.Module) -> None:
        """Forget everything if the model has changed since the last check."""
        if self._texts or self.num_tokens:
            mark = mark_model(model)
            if mark != self.mark:
                self.forget()
            self.mark = mark

    def forget(self) -> None:
        """Let all texts go, pinned ones too."""
        self._texts = []

    def is_pinned(self, ids: Sequence[int], adapter: str | None = None) -> bool:
        """Whether a text that is kept for good has all of these."""
        asked = _Text(adapter, list(ids), [], is_pinned=True)
        return any(text.is_pinned and text.goes_on_from(asked) for text in self._texts)

    def find(self, ids: Sequence[int], adapter: str | None = None) -> tuple[int, list[Layer]]:
        """How many first ids a text shares with these, the most that any does, and the text's layers.

        Only what was computed under the same adapter counts; None: the model as it is.
        """
        shared = [count_shared(text.ids, ids) if text.adapter == adapter else 0 for text in self._texts]
        if not shared or not max(shared):
            return 0, []
        text = self._texts.pop(shared.index(max(shared)))
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
        """Hold a text computed under an adapter, in place of those that it goes on from. `pin`: for good.

        `mark`: of `mark_model` when its first id was read; the text of a model that was another is not held.
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
    """Length of the common beginning of two texts."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def mark_model(model: nn.Module) -> object:
    """What changes when a weight is replaced or changed in place, an adapter switched on, off or scaled.

    Only a change through `.data` goes unseen.
    """
    weights = [(id(p), 0 if p.is_inference() else p._version) for p in model.parameters()]
    layers: Iterator[Any] = (part for part in model.modules() if hasattr(part, "merged_adapters"))  # PEFT's
    return weights, [_mark_adapters(part) for part in layers]


def _mark_adapters(part: Any) -> object:
    scaling = repr(getattr(part, "scaling", None))
    return list(part.active_adapters), part.disable_adapters, list(part.merged_adapters), scaling
