"""Models of no numbers whose passes run as true ones do, in no memory: for the bytes that these would take.

An imagined tensor is one of torch's meta device, which has shape, type and size of storage and nothing in it,
under the name of a CPU, so that the code of a CPU is taken. Of what a pass does with numbers only a choice of
experts needs them: it is dealt out evenly.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from glmtune.models.computing import HeldExperts, holds_experts
from glmtune.models.frozen_linear import FrozenLinear
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import causal_of
from glmtune.objectives.cross_entropy import BLOCK_NUMBERS, is_frozen_product

CPU = torch.device("cpu")
META = torch.device("meta")


class ImaginedTensor(Tensor):
    """A tensor that says it is on a CPU, of a `held` one on the meta device, which its operators compute on.

    torch's own fake tensors do the same, and guard what compilers need: ten times the time of an operator.
    """

    held: Tensor

    @staticmethod
    def __new__(cls: type["ImaginedTensor"], held: Tensor) -> "ImaginedTensor":
        """Wrap a tensor of the meta device."""
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        wrapper: Any = Tensor._make_wrapper_subclass
        imagined: ImaginedTensor = wrapper(cls, held.shape, dtype=held.dtype, device=CPU, **layout)
        imagined.held = held
        return imagined

    # tensors of one storage are known by it, and its size counts
    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the storage that views share."""
        return self.held.untyped_storage()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # torch's way

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch types a function that this replaces
        cls,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator on the held tensors; one that writes into a tensor has nothing to do."""
        named = kwargs or {}
        if written := _written(func):
            found = [named[name] if name in named else args[at] for at, name in written]
            return found[0] if len(found) == 1 else tuple(found)
        named = {name: META if name == "device" else _held(each) for name, each in named.items()}
        return tree_map_only(Tensor, ImaginedTensor, func(*_held(args), **named))


@cache
def _written(operator: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """Return place and name of the arguments that an operator of torch writes into and returns."""
    assert torch.Tag.inplace_view not in operator.tags, f"{operator} changes a tensor's shape"
    arguments = enumerate(operator._schema.arguments)
    return tuple((at, each.name) for at, each in arguments if each.alias_info and each.alias_info.is_write)


def _held(given: Any) -> Any:  # Any: what torch's operators take
    """Return arguments of an operator with the held tensors."""
    if isinstance(given, Tensor):
        return given.held if isinstance(given, ImaginedTensor) else given.to(META)
    return [_held(each) for each in given] if isinstance(given, (list, tuple)) else given


def imagine(model: CausalLM) -> None:
    """Turn a model on the meta device into one on an imagined CPU, in place."""
    made = dict[int, Any]()  # tied weights stay one
    for part in model.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, ImaginedTensor):
                    continue
                if id(tensor) not in made:
                    imagined = ImaginedTensor(tensor.detach().to(META))
                    is_weight = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(imagined, tensor.requires_grad) if is_weight else imagined
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
