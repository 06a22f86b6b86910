"""Autograd functions that keep and compute less than the operations they are made of.

Their forward passes give the numbers of those operations: the norm and SwiGLU to the bit, the rotation but
for one rounding. They can be differentiated once.

Shapes: B batch, T tokens, H query heads, G key/value heads, D head size, C hidden size, F feed-forward size.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_silu_backward = torch.ops.aten.silu_backward.grad_input


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


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type that sums over `dtype` are computed in: float64 for itself, else fp32."""
    return torch.promote_types(dtype, torch.float32)


_NUMBERS_AT_ONCE = 2**17  # half a megabyte in fp32


def cached_blocks(rows: Tensor) -> Iterator[slice]:
    """Yield slices of rows (N, C) that stay in a core's cache from pass to pass; on a GPU one of all."""
    size = len(rows)
    if rows.device.type == "cpu":
        size = max(1, _NUMBERS_AT_ONCE * torch.get_num_threads() // rows.shape[1])
    return (slice(start, start + size) for start in range(0, len(rows), max(1, size)))


def swiglu(gate_and_up: Tensor) -> Tensor:
    """Return silu(gate) * up, (..., F), of both side by side, (..., 2 F), which alone is kept."""
    product: Tensor = _SwiGLU.apply(gate_and_up)  # type: ignore[no-untyped-call]
    return product


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:  # Any: torch's context takes arbitrary attributes
        ctx.save_for_backward(gate_and_up)
        rows = gate_and_up.flatten(0, -2)
        product = rows.new_empty(len(rows), rows.shape[1] // 2)
        for at in cached_blocks(rows):
            gate, up = rows[at].chunk(2, dim=-1)
            torch.mul(functional.silu(gate), up, out=product[at])
        return product.view(*gate_and_up.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # Any: as in `forward`
        (gate_and_up,) = ctx.saved_tensors
        rows, gradient = (x.flatten(0, -2) for x in (gate_and_up, gradient))
        to_both = torch.empty_like(rows)
        for at in cached_blocks(rows):
            gate, up = rows[at].chunk(2, dim=-1)
            to_gate, to_up = to_both[at].chunk(2, dim=-1)
            silu = functional.silu(gate)  # again: keeping it would take half as much as `gate_and_up`
            torch.mul(gradient[at], silu, out=to_up)
            _silu_backward(torch.mul(gradient[at], up, out=silu), gate, grad_input=to_gate)
        return to_both.view(gate_and_up.shape)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, *, rounds_first: bool = False) -> Tensor:
    """Normalise x (..., C) in fp32, with the weight multiplied before the cast back to x's type.

    rounds_first: multiply it after the cast, as Llama's norm does; the weight's type may then widen the
    result. Of its inputs' size it keeps x alone.
    """
    source = NormSource(x, weight, epsilon, rounds_first)
    normed: Tensor = _RMSNorm.apply(x, weight, source)  # type: ignore[no-untyped-call]
    vars(normed)["norm_source"] = (source, normed._version)
    return normed


@dataclass(frozen=True, slots=True)
class NormSource:
    """Of what a norm's result is made: it is cheaper to compute again than to keep."""

    x: Tensor
    weight: Tensor
    epsilon: float
    rounds_first: bool

    @classmethod
    def of(cls, normed: Tensor) -> "NormSource | None":
        """Return the source of a result of `rms_norm`, None for any other tensor or one that was changed."""
        source, version = vars(normed).get("norm_source", (None, 0))
        return source if normed._version == version else None

    @torch.no_grad()
    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the result, (..., C), and the scale of each token, (N, 1)."""
        x, weight = self.x, self.weight
        tokens = x.reshape(-1, x.shape[-1])
        dtype = torch.promote_types(x.dtype, weight.dtype) if self.rounds_first else x.dtype
        normed = torch.empty_like(tokens, dtype=dtype)
        scale = tokens.new_empty(len(tokens), 1, dtype=wide_type(x.dtype))
        with without_autocast(x.device):
            for at in cached_blocks(tokens):
                wide = tokens[at].to(scale.dtype)
                squares = wide.square()
                torch.mean(squares, -1, keepdim=True, out=scale[at])
                scale[at].add_(self.epsilon).rsqrt_()
                unweighted = torch.mul(wide, scale[at], out=squares)
                if self.rounds_first:
                    torch.mul(unweighted.to(x.dtype), weight, out=normed[at])
                else:
                    normed[at] = unweighted.mul_(weight)
        return normed.view(x.shape), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's context takes arbitrary attributes
        x: Tensor,
        weight: Tensor,
        source: NormSource,
    ) -> Tensor:
        normed, scale = source.compute()
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # Any: as in `forward`
        x, weight, scale = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        tokens, gradient = (part.reshape(-1, x.shape[-1]) for part in (x, gradient))
        to_x = torch.empty_like(tokens) if needs_x else None
        to_weight = torch.zeros_like(weight, dtype=scale.dtype) if needs_weight else None
        with without_autocast(x.device):
            for at in cached_blocks(tokens):
                wide, wide_gradient = (part[at].to(scale.dtype) for part in (tokens, gradient))
                if to_weight is not None:
                    to_weight += (wide * scale[at]).mul_(wide_gradient).sum(0)
                if to_x is not None:
                    # with n = x * scale: scale * (w g - n * mean(w g n))
                    to_normed = wide_gradient * weight
                    mean = (to_normed * wide).sum(-1, keepdim=True).mul_(scale[at]).div_(-x.shape[-1])
                    mean.mul_(scale[at]).mul_(scale[at])
                    to_x[at] = to_normed.mul_(scale[at]).addcmul_(wide, mean)
        return (
            None if to_x is None else to_x.view(x.shape),
            None if to_weight is None else to_weight.to(weight.dtype),
            None,
        )


Heads = tuple[Tensor, Tensor, Tensor]
"""Queries (B, H, T, D), keys and values (B, G, T, D)."""


def split_and_rotate(projected: Tensor, cos: Tensor, sin: Tensor, num_heads: tuple[int, int]) -> Heads:
    """Split what one projection made, (B, T, (H + 2 G) D), and rotate the first half of queries and keys.

    cos, sin: (B, 1, T, D) for adjacent pairs, of which the second half is not rotated. num_heads: H and G.
    In half types the pairs are rotated in fp32 and rounded once.
    """
    heads: Heads = _RotatedHeads.apply(projected, cos, sin, num_heads)  # type: ignore[no-untyped-call]
    return heads


class _RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's context takes arbitrary attributes
        projected: Tensor,
        cos: Tensor,
        sin: Tensor,
        num_heads: tuple[int, int],
    ) -> Heads:
        queries, keys = num_heads
        ctx.save_for_backward(cos, sin)
        # a copy of all, values too: theirs as a view would keep the whole projection
        heads = projected.view(*projected.shape[:2], -1, cos.shape[-1]).clone()
        _rotate_in_place(heads[:, :, : queries + keys], _pairs_of(cos, sin))
        heads = heads.transpose(1, 2)  # (B, H + 2 G, T, D)
        return heads[:, :queries], heads[:, queries : queries + keys], heads[:, queries + keys :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # Any: as in `forward`
        heads = torch.cat([gradient.transpose(1, 2) for gradient in gradients], dim=2)
        rotated = heads.shape[2] - gradients[-1].shape[1]
        # a rotation's gradient is rotated back
        _rotate_in_place(heads[:, :, :rotated], _pairs_of(*ctx.saved_tensors).conj())
        return heads.flatten(2), None, None, None


def _pairs_of(cos: Tensor, sin: Tensor) -> Tensor:
    """Return the angles of the pairs that are rotated, as complex numbers (B, T, 1, D / 4)."""
    half = cos.shape[-1] // 2
    wide = wide_type(cos.dtype)
    # `sin` is negative for the first of each pair
    return torch.complex(cos[..., 0:half:2].to(wide), sin[..., 1:half:2].to(wide)).transpose(1, 2)


def _rotate_in_place(heads: Tensor, by: Tensor) -> None:
    """Rotate the first half of heads (B, T, heads, D) by complex angles (B, T, 1, D / 4)."""
    half = heads[..., : heads.shape[-1] // 2]
    wide = half.to(by.real.dtype)  # the half itself, unless it is of a half type: torch has no complex bf16
    torch.view_as_complex(wide.view(*wide.shape[:-1], -1, 2)).mul_(by)
    if wide is not half:
        half.copy_(wide)
