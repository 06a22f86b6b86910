"""Products with frozen weights, in the type of the input whatever type or codes the weights are held in.

On a CPU a weight that is held in another form is never there as a whole: a block of its rows (the product) or
of its columns (the input's gradient) is written into a buffer, which the next block reuses, and multiplied at
once. Blocks of columns for the gradient, so that no sum is split: in bf16 each part would be rounded. Writing
a block costs one read of the weight, against hundreds of rows of a product. Elsewhere a block is a whole
layer, freed after the product.

Shapes: N rows, I inputs of a layer, O its outputs.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from glmtune.models.fused import computing_type, without_autocast

BLOCK_BYTES = 2**24
"""Bytes of the buffer that blocks are written into, one for each type and thread. Products of 256 rows take
the same time from 4 to 32 MiB; below 4 the blocks of the widest layers of 6B are too narrow."""

_MULTIPLE = 64
"""Blocks begin at a multiple of it: codes lie two in a byte, and 64 of NF4's weights share a magnitude."""

_CAST_AT_ONCE = 2**18  # in fp32 a MiB

HELD_ROWS = 2
"""The most rows for which a dense weight is multiplied in the type it is held in, by `is_quick_for_few_rows`.
On one AVX2 core a bf16 weight of 4096 x 4608 takes a row in 5.7 ms (in fp32, held so, 4.4), 8 ms cast by
blocks; four rows take 15 ms and 13."""


class FrozenLinear(nn.Linear):
    """A frozen linear layer whose weight is held in another form than it computes in: the type of its input.

    A subclass says how a block of the weight is written. Only the bias may be trained.
    """

    is_quick_for_few_rows = False
    """In a decoding step, multiply few rows in the type that suits the held weight: decoding is up to ten
    times as fast, and rounds the rows to that type. Set by `hurry_few_rows`."""

    @property
    def is_in_a_hurry(self) -> bool:
        """True inside a `decoding_step` if the layer may round its rows there."""
        return self.is_quick_for_few_rows and _pass.is_step

    def write(self, out: Tensor, rows: slice, columns: slice) -> None:
        """Write these rows and columns of the weight into `out`, contiguous, in its dtype."""
        raise NotImplementedError

    def whole(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (O, I) in `dtype`."""
        weight = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.weight.device)
        self.write(weight, slice(0, self.out_features), slice(0, self.in_features))
        return weight

    def multiply_held(self, rows: Tensor) -> Tensor | None:
        """Return `multiply` of rows by a kernel that reads the weight as it is held, None for no such kernel.

        Rounded as what is written is.
        """
        return None

    def multiply_held_back(self, gradient: Tensor) -> Tensor | None:
        """Return `multiply_back` of a gradient, as `multiply_held`."""
        return None

    def multiply_few(self, rows: Tensor) -> Tensor | None:
        """Return the output of few rows by a quicker way than writing blocks, None where there is none.

        Called without gradients.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., I) to (..., O), in the input's dtype or autocast's."""
        x = x.to(computing_type(x))
        # two dimensions: of (B, T, I) the product would be a view, to which adapters may add nothing in place
        rows = x.reshape(-1, x.shape[-1])
        product: Tensor | None
        if torch.is_grad_enabled():
            product = FrozenProduct.apply(rows, self.bias, self)  # type: ignore[no-untyped-call]
        else:
            product = self.multiply_few(rows)
        if product is None:
            product = multiply(self, rows)
        return product.view(*x.shape[:-1], -1)


class HeldLinear(FrozenLinear):
    """A frozen linear layer whose weight is held in another floating-point type."""

    def __init__(self, dense: nn.Linear) -> None:
        """Take over the weight and bias of a dense layer."""
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        self.weight, self.bias = dense.weight, dense.bias
        self._is_hf_initialized = (
            True  # read by transformers, which draws new values for a layer without this mark
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., I) to (..., O), in the input's dtype or autocast's."""
        if not (self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(x)
        # trained after all: by freeze, as one of PEFT's modules_to_save, or a model that nobody has frozen
        x = x.to(computing_type(x))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)

    def write(self, out: Tensor, rows: slice, columns: slice) -> None:
        """Cast a block of the weight."""
        held = self.weight[rows, columns]
        if {held.dtype, out.dtype} != {torch.float16, torch.bfloat16}:
            out.copy_(held)
            return
        # through fp32, in pieces that stay in the cache: one half type to the other takes five times as long
        step = max(1, _CAST_AT_ONCE // out.shape[1])
        for part, values in zip(torch.split(out, step), torch.split(held, step), strict=True):
            part.copy_(values.float())

    def multiply_few(self, rows: Tensor) -> Tensor | None:
        """Multiply up to `HELD_ROWS` rows in the weight's type, on a CPU."""
        held = self.weight.dtype
        is_quick = self.is_in_a_hurry and len(rows) <= HELD_ROWS and rows.device.type == "cpu"
        if not is_quick or rows.dtype == held:
            return None
        product = functional.linear(rows.to(held), self.weight).to(rows.dtype)
        return product if self.bias is None else product.add_(self.bias)


def hurry_few_rows(model: nn.Module) -> None:
    """Have the frozen layers multiply few rows of a `decoding_step` the quick way, which rounds them.

    For a model in the types that its device takes by itself. Rows by the layer: `HELD_ROWS` for a dense
    weight, `products.FP32_ROWS` for codes.
    """
    for part in model.modules():
        if isinstance(part, FrozenLinear):
            part.is_quick_for_few_rows = True


class _Pass(threading.local):
    """The thread's forward pass."""

    is_step = False


_pass = _Pass()


@contextmanager
def decoding_step() -> Iterator[None]:
    """Inside, this thread's forward passes decode a token of each row: hurried layers may round few rows.

    A prompt, a loss or a proof can be as few rows as a step, and has to be exact, so rows alone do not tell.
    """
    before, _pass.is_step = _pass.is_step, True
    try:
        yield
    finally:
        _pass.is_step = before


@torch.no_grad()
def multiply(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Return the layer's output (N, O) of rows (N, I), with its bias, in the rows' dtype; no autograd."""
    held = layer.multiply_held(rows) if isinstance(layer, FrozenLinear) else None
    if held is not None:
        return held
    bias = None if layer.bias is None else layer.bias.to(rows.dtype)
    whole = _whole(layer, rows)
    if whole is not None:
        with without_autocast(rows.device):
            return functional.linear(rows, whole, bias)
    out = rows.new_empty(len(rows), layer.out_features)
    for part, weight in blocks(layer, rows.dtype, is_by_rows=True):
        # the `out=` products are none of autocast's
        if bias is None:
            torch.mm(rows, weight.t(), out=out[:, part])
        else:
            torch.addmm(bias[part], rows, weight.t(), out=out[:, part])
    return out


@torch.no_grad()
def multiply_back(layer: nn.Linear, gradient: Tensor) -> Tensor:
    """Return the input's gradient (N, I) of an output's gradient (N, O), in the gradient's dtype."""
    held = layer.multiply_held_back(gradient) if isinstance(layer, FrozenLinear) else None
    if held is not None:
        return held
    out = gradient.new_empty(len(gradient), layer.in_features)
    whole = _whole(layer, gradient)
    if whole is not None:
        return torch.mm(gradient, whole, out=out)
    for part, weight in blocks(layer, gradient.dtype, is_by_rows=False):
        torch.mm(gradient, weight, out=out[:, part])
    return out


def _whole(layer: nn.Linear, given: Tensor) -> Tensor | None:
    """Return the weight in the dtype of what is multiplied, None where it is to be written by blocks."""
    weight = layer.weight
    if weight.dtype == given.dtype:
        return weight
    if given.device.type == "cpu":
        return None
    return layer.whole(given.dtype) if isinstance(layer, FrozenLinear) else weight.to(given.dtype)


class _Buffers(threading.local):
    """The thread's buffers by type: a block is multiplied before the thread writes another."""

    def __init__(self) -> None:
        self.by_dtype: dict[torch.dtype, Tensor] = {}

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        """Return a buffer of at least `size` numbers."""
        held = self.by_dtype.get(dtype)
        if held is None or held.numel() < size:
            with torch.inference_mode(False):  # an inference tensor could not be written outside
                self.by_dtype[dtype] = held = torch.empty(size, dtype=dtype)
        return held


_buffers = _Buffers()


def block_buffer(dtype: torch.dtype) -> Tensor:
    """Return this thread's buffer for blocks in `dtype`, which stays for good."""
    return _buffers.take(BLOCK_BYTES // dtype.itemsize, dtype)


def blocks(
    layer: nn.Linear, dtype: torch.dtype, *, is_by_rows: bool, numbers: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the layer's weight in blocks of rows or columns, with their place, each written over the last.

    numbers: the most that a block holds, if not those of `BLOCK_BYTES`; it has 64 rows or columns at least.
    """
    outputs, inputs = layer.out_features, layer.in_features
    length, width = (outputs, inputs) if is_by_rows else (inputs, outputs)
    step = max(1, (numbers or BLOCK_BYTES // dtype.itemsize) // width // _MULTIPLE) * _MULTIPLE
    is_held = layer.weight.dtype == dtype
    size = 0 if is_held else min(step, length) * width
    if layer.weight.device.type == "cpu":
        buffer = _buffers.take(size, dtype)
    else:
        buffer = torch.empty(size, dtype=dtype, device=layer.weight.device)
    for start in range(0, length, step):
        part = slice(start, min(start + step, length))
        rows, columns = (part, slice(0, inputs)) if is_by_rows else (slice(0, outputs), part)
        if is_held:
            yield part, layer.weight[rows, columns]
            continue
        size = part.stop - start
        block = buffer[: size * width].view((size, width) if is_by_rows else (width, size))
        if isinstance(layer, FrozenLinear):
            layer.write(block, rows, columns)
        else:
            block.copy_(layer.weight[rows, columns])
        yield part, block


class FrozenProduct(torch.autograd.Function):
    """`multiply` for autograd: it saves the layer, and never a weight in another type."""

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's context takes arbitrary attributes
        rows: Tensor,
        bias: Tensor | None,
        layer: nn.Linear,
    ) -> Tensor:
        """Return `multiply(layer, rows)`; the layer's bias is an argument for the sake of its gradient."""
        ctx.layer = layer
        ctx.bias_dtype = None if bias is None else bias.dtype
        return multiply(layer, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # Any: as in `forward`
        """Return `multiply_back` for the rows, the bias's gradient if it is trained, None for the layer."""
        needs_rows, needs_bias, _ = ctx.needs_input_grad
        (gradient,) = gradients
        to_rows = multiply_back(ctx.layer, gradient) if needs_rows else None
        to_bias = gradient.sum(dim=0).to(ctx.bias_dtype) if needs_bias else None
        return to_rows, to_bias, None
