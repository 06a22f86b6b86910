"""FSDP2: the weights of a model shared out over processes, each layer whole only while it computes.

torch's own `fully_shard`, a group of weights for each layer, and one for the rest: embedding, last norm,
output layer, prefix. Source: docs.pytorch.org, torch.distributed.fsdp.fully_shard.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from glmtune.models.recomputing import layers_of
from glmtune.training.zero import Keep, is_in_parts, part_of_weight


def in_main_memory(whole: Tensor) -> Tensor:
    """Return a copy in main memory."""
    return whole.detach().to("cpu", copy=True)


def share_weights(root: nn.Module, device: torch.device, number: int) -> None:
    """Share a module's weights over so many processes, in place; trained ones are made fp32 on the way.

    Layer by layer, so that no process ever holds more of a mapped model than one layer. Raises RuntimeError
    if a weight stays whole.
    """
    mesh = init_device_mesh(device.type, (number,))
    for part in (*layers_of(root), root):
        for weight in part.parameters():
            if weight.requires_grad and not isinstance(weight, DTensor):
                weight.data = weight.data.float()
        # layers first: the call for the root takes only what no layer has taken
        fully_shard(part, mesh=mesh)
    whole = [name for name, weight in root.named_parameters() if not isinstance(weight, DTensor)]
    if whole:
        raise RuntimeError(f"{whole[0]} and {len(whole) - 1} other weights are not shared")
    # now and in this order: whichever part runs first would be taken for the root, and what a first pass of
    # torch's inference mode puts together could not be trained with
    cast("Any", root)._get_fsdp_state()._lazy_init()
    for part in _groups(root):
        part.unshard()
        part.reshard()


def _groups(root: nn.Module) -> list[FSDPModule]:
    return [part for part in root.modules() if isinstance(part, FSDPModule)]


def settle(root: nn.Module) -> None:
    """Give back what a pass without a backward pass has left whole."""
    for part in _groups(root):
        part.reshard()


@contextmanager
def outer_weights(root: nn.Module) -> Iterator[None]:
    """Inside, the weights outside the layers are whole: parts of the model can be called by themselves."""
    part = cast("FSDPModule", root)
    part.unshard()
    try:
        yield
    finally:
        settle(root)


@contextmanager
@torch.no_grad()
def whole_trained(root: nn.Module, *, keep: Keep | None, is_changed: bool = False) -> Iterator[None]:
    """Inside, the trained weights are whole in the first process; in others `keep` is None.

    All processes must call it. With `is_changed` all go on with what the first process then has in them.
    """
    settle(root)
    places = [
        (part, name, weight)
        for part in root.modules()
        for name, weight in part._parameters.items()
        if isinstance(weight, DTensor) and weight.requires_grad
    ]
    wholes: dict[int, nn.Parameter] = {}  # by weight: tied ones are one
    for part, name, weight in places:
        # one weight may be in two modules: gathered twice it would be two afterwards
        if id(weight) not in wholes:
            whole = cast("DTensor", weight).full_tensor()  # by all, also where it is dropped
            wholes[id(weight)] = nn.Parameter(keep(whole) if keep else whole.new_empty(0))
        if keep:
            part._parameters[name] = wholes[id(weight)]
    try:
        yield
    finally:
        for part, name, weight in places:
            part._parameters[name] = cast("nn.Parameter", weight)
    for shared in {id(weight): cast("DTensor", weight) for *_, weight in places if is_changed}.values():
        held = wholes[id(shared)].detach() if keep else torch.empty(shared.shape, dtype=shared.dtype)
        # the first process's numbers, one tensor at a time
        own = distribute_tensor(held.to(shared.device), shared.device_mesh, shared.placements)
        shared.to_local().copy_(own.to_local())


def whole_state(state: Mapping[str, Any], *, keep: Keep | None) -> dict[str, Any]:
    """Return an optimizer's `state_dict` with whole tensors; all processes must call it.

    Without `keep` the tensors are dropped, one after the other.
    """
    means: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        means[number] = {}
        for name, value in values.items():
            known = value.full_tensor() if isinstance(value, DTensor) else value
            if keep:
                means[number][name] = keep(known) if isinstance(known, Tensor) else known
    return {**state, "state": means}


def shared_state(state: Mapping[str, Any], weights: list[nn.Parameter]) -> dict[str, Any]:
    """Return the result of `whole_state` with the tensors shared as the optimizer's weights are."""
    means = {
        number: {
            name: distribute_tensor(
                value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
            )
            # AdamW's count of steps has no axis to share
            if isinstance(value, Tensor) and isinstance(like := weights[number].data, DTensor) and value.ndim
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": means}


def is_shared_out(tensor: Tensor) -> bool:
    """Return True for a tensor of which this process holds a part."""
    return isinstance(tensor, DTensor) or is_in_parts(tensor)


def own_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor that this process holds: of a shared one those of its part."""
    return own_part(tensor).nbytes


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    if is_in_parts(tensor):
        return part_of_weight(tensor)
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
