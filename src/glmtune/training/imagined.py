"""Models of no numbers whose passes run as true ones do, in no memory: for the bytes that these would take.

torch's fake tensors have a device, a type and a storage of a size, and nothing in it; each operator gives
others of the shapes that its results have. Of what a pass does with numbers only a choice of experts needs
them: it is dealt out evenly.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from glmtune.models.computing import HeldExperts, holds_experts
from glmtune.models.frozen_linear import FrozenLinear
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import causal_of
from glmtune.objectives.cross_entropy import BLOCK_NUMBERS, is_frozen_product

CPU = torch.device("cpu")


def imagine(model: CausalLM) -> None:
    """Turn a model on the meta device into one on an imagined CPU, in place."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made = dict[int, Any]()  # tied weights stay one
    for part in model.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, FakeTensor):
                    continue
                if id(tensor) not in made:
                    fake = FakeTensor(mode, tensor.detach().to("meta"), CPU)
                    is_weight = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
                tensors[name] = made[id(tensor)]
        if isinstance(part, FrozenLinear):
            part.write = _write_nothing  # type: ignore[method-assign, assignment]  # else many operators
            # else many blocks, and few rows by kernels that want numbers
            part.multiply_few = _as_many  # type: ignore[method-assign, assignment]
            part.multiply_held = partial(_multiply, part)  # type: ignore[method-assign]
            part.multiply_held_back = partial(_multiply_back, part)  # type: ignore[method-assign]
        elif holds_experts(part):
            part.register_forward_pre_hook(_deal_out)
            if not isinstance(part, HeldExperts):  # transformers' grouped product takes no imagined fp32
                cast("Any", part).config._experts_implementation = "eager"
    head = causal_of(model).get_output_embeddings()
    if is_frozen_product(head):  # two blocks of it are enough: each takes what any other does
        head.out_features = min(head.out_features, 2 * BLOCK_NUMBERS // head.in_features)
        head.weight = nn.Parameter(head.weight[: head.out_features], requires_grad=False)


def _write_nothing(*_: object) -> None:
    """Stand for `FrozenLinear.write`, which fills a block that exists."""


def _multiply(layer: FrozenLinear, rows: torch.Tensor) -> torch.Tensor:
    """Stand for `multiply`, with the tensors that it makes on a CPU."""
    bias = None if layer.bias is None else layer.bias.to(rows.dtype)
    out = rows.new_empty(len(rows), layer.out_features)
    del bias  # not before: it is there while it is added
    return out


def _multiply_back(layer: FrozenLinear, gradient: torch.Tensor) -> torch.Tensor:
    """Stand for `multiply_back`."""
    return gradient.new_empty(len(gradient), layer.in_features)


def _as_many(_: torch.Tensor) -> None:
    """Stand for `FrozenLinear.multiply_few`: few rows are multiplied as many are."""


def _deal_out(experts: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give each token the experts that follow the last token's: inputs are hidden states, choice, weights."""
    hidden_states, chosen, *rest = inputs
    number: Any = experts.num_experts
    return hidden_states, torch.arange(chosen.numel()).view(chosen.shape) % number, *rest


@dataclass(frozen=True, slots=True)
class ImaginedProcess:
    """A single process that computes in a precision, fp32, bf16 or fp16, in place of `Processes`."""

    precision: str
    device: torch.device = CPU

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which forward passes compute in `precision`."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast("cpu", dtype)
