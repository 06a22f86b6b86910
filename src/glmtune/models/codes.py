"""Quantised codes as a parameter class: they can be held, moved, saved and read, but not added to."""

from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError


def _refuse(*_: object) -> NoReturn:
    raise ConfigError(
        "merge: the base is quantised, an adapter cannot be merged into its codes",
        hint="put the adapter on the original base, opened without quant, and merge it there",
    )


class Codes(nn.Parameter):
    """The codes of a quantised weight. Adding to them, or assigning other numbers, raises ConfigError.

    PEFT merges an adapter by adding its weights to the base layer's, also to codes, which it does not know:
    an addition would change them by whole numbers or by none. PEFT reads `weight.data`, copies it and assigns
    the sum, so that each of these must stay `Codes`.
    """

    __add__ = __iadd__ = __radd__ = __sub__ = __isub__ = _refuse

    def __new__(cls, codes: Tensor, requires_grad: bool = False) -> "Codes":
        """Make codes in the tensor's own memory, with the attributes that loaders set on it."""
        parameter: Codes = Tensor._make_subclass(cls, codes, requires_grad)
        parameter.__dict__.update(codes.__dict__)
        return parameter

    @property
    def data(self) -> Tensor:
        """Return the codes as `Codes`, where torch would return a plain tensor."""
        plain: Tensor = _TENSOR_DATA.__get__(self)
        return plain.as_subclass(Codes)

    @data.setter
    def data(self, value: Tensor) -> None:
        # `Module.to` assigns the same numbers, moved or in the same memory; anything else is a calculation
        is_moved = value.device != self.device or value.data_ptr() == self.data_ptr()
        if not is_moved:
            _refuse()
        _TENSOR_DATA.__set__(self, value)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # Any: as torch types it
        """Pickle the plain tensor: torch would pickle `data`, which is `Codes` again, without end."""
        return Codes, (self.detach(), self.requires_grad)

    def clone(self, *, memory_format: torch.memory_format | None = None) -> Tensor:
        """Copy the codes, as `Codes`."""
        return super().clone(memory_format=memory_format).as_subclass(Codes)


_TENSOR_DATA = cast("Any", Tensor.data)  # torch's own descriptor, which the property above hides
