"""Attention by row on a GPU: torch's kernel for sequences of varying length, in one call for all rows.

Source: https://docs.pytorch.org/docs/stable/nn.attention.varlen.html. Shapes as in `packed`.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_NEEDED = {"scale", "window_size", "enable_gqa"}
"""Arguments that torch 2.13 has, and that came one by one: causal attention is `window_size=(-1, 0)`."""
_AMPERE = (8, 0)
_LARGEST_HEAD = 256
"""Flash attention's largest head size; heads are a multiple of 8 wide."""


@cache
def _kernel() -> Callable[..., Any] | None:
    """Return torch's `varlen_attn`; None where this torch has none, or an older one."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if signature(varlen_attn).parameters.keys() >= _NEEDED else None


def can_varlen(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Return True for tensors and a device that the kernel takes: half precision, from Ampere on."""
    size = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and not dropout
        and size == value.shape[-1] <= _LARGEST_HEAD
        and size % 8 == 0
        and _kernel() is not None
        and torch.cuda.get_device_capability(query.device) >= _AMPERE
    )


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: Tensor | None,
    bounds: tuple[int, ...],
    scaling: float,
) -> Tensor:
    """Attend causally inside each row, behind its prefix: (H, T, D) to (T, H, D)."""
    kernel = _kernel()
    assert kernel is not None
    num_prefix = 0 if prefix is None else prefix.shape[-2]
    longest = max(end - start for start, end in pairwise(bounds))
    # with more keys than queries in a row the triangle ends at the last of both: all see a prefix
    out: Tensor = kernel(
        query.transpose(0, 1).contiguous(),
        _with_prefix(key, prefix[0] if prefix is not None else None, bounds),
        _with_prefix(value, prefix[1] if prefix is not None else None, bounds),
        _ends(bounds, 0, query.device),
        _ends(bounds, num_prefix, query.device),
        longest,
        longest + num_prefix,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=key.shape[0] != query.shape[0],
    )
    return out


def _with_prefix(x: Tensor, prefix: Tensor | None, bounds: tuple[int, ...]) -> Tensor:
    """Return keys or values (G, T, D) as (T + N P, G, D), behind each row's own prefix of (N, G, P, D)."""
    x = x.transpose(0, 1)
    if prefix is None:
        return x.contiguous()
    rows = torch.split(x, [end - start for start, end in pairwise(bounds)])
    return torch.cat([part for pair in zip(prefix.transpose(1, 2), rows, strict=True) for part in pair])


@lru_cache(maxsize=8)  # each layer of a step asks for the same
def _ends(bounds: tuple[int, ...], num_prefix: int, device: torch.device) -> Tensor:
    """Return the rows' bounds (N + 1,) on the device, where each row has `num_prefix` tokens more."""
    ends = [bound + i * num_prefix for i, bound in enumerate(bounds)]
    with torch.inference_mode(False):  # one kept from an evaluation could not be saved for a backward pass
        return torch.tensor(ends, dtype=torch.int32, device=device)
