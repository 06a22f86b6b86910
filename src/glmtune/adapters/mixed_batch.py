"""One pass through the base for several requests, each under a LoRA adapter of its own.

The base's product is computed once for all tokens, then each adapter's part is added where its tokens are, by
PEFT's own formula. PEFT's `adapter_names` does so for the rows of a batch; it knows neither several requests
in one packed row nor DoRA.

Source: S-LoRA, https://arxiv.org/abs/2311.03285.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

_Places = dict[str, Tensor]


@contextmanager
def each_its_own(
    layers: Iterable[Any], owners: Sequence[str | None], num_tokens: Sequence[int], *, device: torch.device
) -> Iterator[None]:
    """Inside, PEFT's linear layers, switched off, give each request's tokens what its own adapter adds.

    `owners`: PEFT's name of each request's adapter, None for the base alone; `num_tokens`: how many tokens in
    a row belong to each. A layer is given all tokens or, as the output layer may be, one for each request.
    """
    tokens = [owner for owner, count in zip(owners, num_tokens, strict=True) for _ in range(count)]
    told = {len(owners): owners, len(tokens): tokens}  # one and the same in a step
    places = {count: _find_places(each, device) for count, each in told.items()}
    hooks = [layer.register_forward_hook(partial(_add_own, places)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _find_places(owners: Sequence[str | None], device: torch.device) -> _Places:
    places: dict[str, list[int]] = {}
    for row, owner in enumerate(owners):
        if owner is not None:
            places.setdefault(owner, []).append(row)
    return {name: torch.tensor(found, device=device) for name, found in places.items()}


def _add_own(places: Mapping[int, _Places], layer: Any, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
    """A forward hook: what the base gives, (..., O), for inputs (..., I), and each adapter's part on it."""
    inputs, outputs = args[0].flatten(0, -2), result.flatten(0, -2)
    for name, where in places[len(inputs)].items():
        if name in layer.lora_A:
            here = where.to(inputs.device)  # elsewhere only where a model is spread
            outputs[here] = _tune(layer, name, inputs[here], outputs[here]).to(outputs.dtype)
    return outputs.view(result.shape)


def _tune(layer: Any, name: str, inputs: Tensor, result: Tensor) -> Tensor:
    """What the layer gives with one adapter set to work, from what the base gives.

    Source: github.com/huggingface/peft v0.21.2, tuners/lora/layer.py, Linear.forward.
    """
    down, up = layer.lora_A[name], layer.lora_B[name]
    inputs = inputs.to(down.weight.dtype)
    if name in layer.lora_variant:  # DoRA
        tuned: Tensor = layer.lora_variant[name].forward(layer, active_adapter=name, x=inputs, result=result)
        return tuned
    added: Tensor = up(down(inputs)) * layer.scaling[name]
    return result + added
