"""Autograd functions that save and compute less than the operations they are made of.

Each gives the same numbers as those operations in its forward pass, and can be differentiated once.

Shapes: F feed-forward size, C hidden size.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def computing_type(x: Tensor) -> torch.dtype:
    """Return the type that products with x compute in: autocast's where it is on, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context without autocast on the device's kind, in which tensors compute in their own types."""
    # autograd functions run under the caller's autocast, in the backward pass too if it is called there
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
