"""Models of no numbers whose passes run as true ones do, in no memory: for the bytes that these would take.

torch's fake tensors have a device, a type and a storage of a size, and nothing in it; each operator gives
others of the shapes that its results have. Of what a pass does with numbers only a choice of experts needs
them: it is dealt out evenly.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from glmtune.models.computing import HeldExperts, holds_experts
from glmtune.models.frozen_linear import FrozenLinear

CPU = torch.device("cpu")


def imagine(model: nn.Module) -> None:
    """Turn a model on the meta device into one on an imagined CPU, in place."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made = dict[int, Any]()  # tied weights stay one
    for part in model.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and not isinstance(tensor, FakeTensor):
                    tensors[name] = made.setdefault(id(tensor), _fake(mode, tensor))
        if isinstance(part, FrozenLinear):
            part.write = _write_nothing  # type: ignore[method-assign, assignment]  # else many operators
        elif holds_experts(part):
            part.register_forward_pre_hook(_deal_out)
            if not isinstance(part, HeldExperts):  # transformers' grouped product takes no imagined fp32
                cast("Any", part).config._experts_implementation = "eager"


def _fake(mode: FakeTensorMode, tensor: Tensor) -> Any:  # Any: a buffer or a parameter
    fake = FakeTensor(mode, tensor.detach().to("meta"), CPU)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake


def _write_nothing(*_: object) -> None:
    """Stand for `FrozenLinear.write`, which fills a block that exists."""


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
