"""LoRA's linear layers in training: the base's product and the low-rank update as one autograd function.

PEFT composes the layer of autograd's own operations, which keep a copy of the input in fp32, the dropped
input and the low-rank product, write the output three times, and compute in fp32 whatever the base computes
in. The function here keeps the input (that of the norm which made it, and norms again), x A^T and dropout's
mask, and computes in the base's type. Names, files, merging and switching off stay PEFT's: its layers are
given a subclass, and whatever the function does not know goes PEFT's way.

Shapes: N rows, I inputs of a layer, O its outputs, r the rank.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glmtune.models.frozen_linear import FrozenLinear, multiply, multiply_back
from glmtune.models.fused import NormSource, computing_type, without_autocast
from glmtune.models.wrapped import is_hooked


def fuse_lora(tuned: nn.Module) -> None:
    """Have PEFT's plain linear LoRA layers train by the fused function, in place."""
    for part in tuned.modules():
        if type(part) is Linear:  # not isinstance: a subclass may compute something else
            part.__class__ = FusedLinear


class FusedLinear(Linear):  # type: ignore[misc]  # peft has no types
    """PEFT's LoRA layer, fused in training mode with exactly one plain adapter active."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the adapted layer's output (..., O) of x (..., I), in the type that the base computes in."""
        # in evaluation mode PEFT's, so that probes and answers do not depend on who put the adapter on
        name = self._sole_adapter() if self.training and not args and not kwargs else None
        if name is None or not x.is_floating_point():
            tuned: Tensor = super().forward(x, *args, **kwargs)
            return tuned
        dropout = self.lora_dropout[name]
        product: Tensor = _LoraProduct.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]),
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.base_layer,
            self.scaling[name],
            dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0,
            computing_type(x),
            NormSource.of(x),
        )
        return product.view(*x.shape[:-1], -1)

    def _sole_adapter(self) -> str | None:
        """Return the name of the adapter that the function computes, None where PEFT must."""
        if self.disable_adapters or self.merged or self.fan_in_fan_out:
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or active[0] in self.lora_variant:  # DoRA and others are variants
            return None
        name = active[0]
        base, down, up = self.base_layer, self.lora_A[name], self.lora_B[name]
        is_known = isinstance(base, FrozenLinear) or type(base) is nn.Linear
        is_plain = type(down) is type(up) is nn.Linear and down.bias is up.bias is None
        # a base that trains, as PEFT's `bias=all` makes it, has gradients of its own
        is_frozen = not any(held.requires_grad for held in base.parameters(recurse=False))
        is_called = any(is_hooked(part) for part in (base, down, up, self.lora_dropout[name]))
        return name if is_known and is_plain and is_frozen and not is_called else None


class _LoraProduct(torch.autograd.Function):
    """W x + scaling B A dropout(x); saves x as it came or its source, x A^T, dropout's mask if any."""

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's context takes arbitrary attributes
        x: Tensor,
        a: Tensor,
        b: Tensor,
        base: nn.Linear,
        scaling: float,
        dropout: float,
        dtype: torch.dtype,
        source: NormSource | None,
    ) -> Tensor:
        ctx.base, ctx.scaling, ctx.dtype = base, scaling, dtype
        ctx.kept_scale = 1 / (1 - dropout) if dropout < 1 else 0.0
        with without_autocast(x.device):
            rows = x.to(dtype)
            out = multiply(base, rows)
            # the numbers that nn.Dropout draws
            dropped, mask = torch.native_dropout(rows, dropout, True) if dropout else (rows, None)
            down = dropped @ a.to(dtype).T  # (N, r)
            out.addmm_(down, b.to(dtype).T, alpha=scaling)
        # x and not `rows`: under autocast each target of one input would keep a copy of its own
        ctx.source, ctx.given = source and (source.epsilon, source.rounds_first), x.dtype
        ctx.save_for_backward(*((source.x, source.weight) if source else (x, None)), down, mask, a, b)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # Any: as in `forward`
        x, norm, down, mask, a, b = ctx.saved_tensors
        needs_x, needs_a, needs_b, *_ = ctx.needs_input_grad
        to_x = to_a = to_b = None
        with without_autocast(x.device):
            to_down = (gradient @ b.to(ctx.dtype)).mul_(ctx.scaling)  # (N, r)
            if needs_b:
                to_b = (down.T @ gradient).T.mul(ctx.scaling).to(b.dtype)
            if needs_a:
                if ctx.source:
                    x = NormSource(x, norm, *ctx.source).compute()[0].flatten(0, -2)
                rows = x.to(ctx.dtype)
                rows = rows if mask is None else (rows * mask).mul_(ctx.kept_scale)
                to_a = (to_down.T @ rows).to(a.dtype)
            if needs_x:
                # without gradients before a model's first adapter: the base's product back is skipped there
                to_x = multiply_back(ctx.base, gradient)
                if mask is None:
                    to_x.addmm_(to_down, a.to(ctx.dtype))
                else:
                    to_x.add_((to_down @ a.to(ctx.dtype)).mul_(mask), alpha=ctx.kept_scale)
                to_x = to_x.to(ctx.given)
        return to_x, to_a, to_b, None, None, None, None, None
