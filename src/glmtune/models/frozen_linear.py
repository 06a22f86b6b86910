"""Products with frozen weights, in the type of the input whatever type or codes the weights are held in.

Shapes: N rows, I inputs of a layer, O its outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def multiply(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Return the layer's output (N, O) of rows (N, I), with its bias, in the rows' dtype; no autograd."""
    bias = None if layer.bias is None else layer.bias.to(rows.dtype)
    return functional.linear(rows, _weight_in(layer, rows.dtype), bias)


def multiply_back(layer: nn.Linear, gradient: Tensor) -> Tensor:
    """Return the input's gradient (N, I) of an output's gradient (N, O), in the gradient's dtype."""
    return gradient @ _weight_in(layer, gradient.dtype)


def _weight_in(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    dequantise = getattr(layer, "dequantise", None)
    weight: Tensor = dequantise() if dequantise else layer.weight.detach()
    return weight.to(dtype)


class FrozenProduct(torch.autograd.Function):
    """`multiply` for autograd: it saves the layer, and never a weight in another type."""

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's context takes arbitrary attributes
        rows: Tensor,
        layer: nn.Linear,
        bias: Tensor | None,
    ) -> Tensor:
        """Return `multiply(layer, rows)`; `bias` is the layer's own, as an argument for its gradient."""
        ctx.layer = layer
        return multiply(layer, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # Any: as in `forward`
        """Return the gradients of the rows and of a bias that is trained."""
        gradient = gradients[0]
        needs_rows, _, needs_bias = ctx.needs_input_grad
        to_rows = multiply_back(ctx.layer, gradient) if needs_rows else None
        return to_rows, None, gradient.sum(dim=0).to(ctx.layer.bias.dtype) if needs_bias else None


class HeldLinear(nn.Linear):
    """A frozen linear layer that computes in the type of its input, its weight held in another."""

    def __init__(self, dense: nn.Linear) -> None:
        """Take over the weight and bias of a dense layer."""
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        self.weight, self.bias = dense.weight, dense.bias
        self._is_hf_initialized = (
            True  # read by transformers, which draws new values for a layer without this mark
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., I) to (..., O), in the input's dtype or autocast's."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        if self.weight.requires_grad:  # trained after all: by freeze, or as one of PEFT's modules_to_save
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return functional.linear(x, self.weight.to(x.dtype), bias)
        product: Tensor = FrozenProduct.apply(x.reshape(-1, x.shape[-1]), self, self.bias)  # type: ignore[no-untyped-call]
        return product.view(*x.shape[:-1], -1)
