"""Quantised codes as parameters: they can be held, moved, saved and read, but not calculated with."""

from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError


def _refuse(*_: Any) -> NoReturn:
    raise ConfigError(
        "merge: the base is quantised, an adapter cannot be merged into its codes",
        hint="put the adapter on the original base, opened without quant, and merge it there",
    )


class Codes(nn.Parameter):
    """The codes of a quantised weight. Adding to them raises ConfigError, as does putting numbers there.

    An adapter is merged by adding its weights to its base's, and PEFT does so with every base layer that it
    does not know; codes would be changed by whole numbers, or by none. It goes by `weight.data`, a copy of
    it, and setting it, so these stay codes. What `Module.to` sets there has moved, or is what was there.
    """

    __add__ = __iadd__ = __radd__ = __sub__ = __isub__ = _refuse

    def __new__(cls, codes: Tensor, requires_grad: bool = False) -> "Codes":
        """Codes in the tensor's own memory, with what loaders have noted on it."""
        made: Codes = Tensor._make_subclass(cls, codes, requires_grad)
        made.__dict__.update(codes.__dict__)
        return made

    @property
    def data(self) -> Tensor:
        """The codes, as codes."""
        held: Tensor = _PLAIN.__get__(self)
        return held.as_subclass(Codes)

    @data.setter
    def data(self, value: Tensor) -> None:
        is_moved = value.device != self.device or value.data_ptr() == self.data_ptr()
        if not is_moved:
            _refuse()
        _PLAIN.__set__(self, value)

    def clone(self, *, memory_format: torch.memory_format | None = None) -> Tensor:
        """A copy, also codes."""
        return super().clone(memory_format=memory_format).as_subclass(Codes)


_PLAIN = cast("Any", Tensor.data)
