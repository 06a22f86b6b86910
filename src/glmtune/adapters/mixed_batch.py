"""A forward pass for several requests of a batch, each with its own LoRA adapter.

The base's product is computed once for all tokens, then each adapter's update is added to its own tokens, by
PEFT's formula. PEFT's `adapter_names` does this for the rows of a batch, but neither for several requests
packed into one row nor for DoRA.

Source: S-LoRA, https://arxiv.org/abs/2311.03285.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

_RowsByAdapter = dict[str, Tensor]
"""Indices of the rows of a layer's input, by PEFT's name of the adapter that applies to them."""


@contextmanager
def adapting_each_request(
    layers: Iterable[Any], owners: Sequence[str | None], num_tokens: Sequence[int], *, device: torch.device
) -> Iterator[None]:
    """Make PEFT's linear layers, whose adapters are disabled, apply each request's adapter to its tokens.

    `owners` gives PEFT's name of each request's adapter (None: the base alone), `num_tokens` the number of
    consecutive tokens of each request. A layer's input has all tokens, or one for each request, as the output
    layer's may.
    """
    tokens = [owner for owner, count in zip(owners, num_tokens, strict=True) for _ in range(count)]
    # A layer tells by its number of input rows if it sees all tokens or the last of each request. While
    # decoding, both numbers are equal, and so are the owners.
    rows_by_length: dict[int, _RowsByAdapter] = {}
    for row_owners in (owners, tokens):
        rows: dict[str, list[int]] = {}
        for row, owner in enumerate(row_owners):
            if owner is not None:
                rows.setdefault(owner, []).append(row)
        rows_by_length[len(row_owners)] = {
            name: torch.tensor(indices, device=device) for name, indices in rows.items()
        }
    hooks = [layer.register_forward_hook(partial(_add_updates, rows_by_length)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add_updates(
    rows_by_length: Mapping[int, _RowsByAdapter],
    layer: Any,  # Any: PEFT's layers carry no types
    args: tuple[Tensor, ...],
    result: Tensor,
) -> Tensor:
    """Add each adapter's update to the base's outputs (..., O) of its rows; a forward hook.

    Source: github.com/huggingface/peft v0.21.2, tuners/lora/layer.py, Linear.forward.
    """
    inputs, outputs = args[0].flatten(0, -2), result.flatten(0, -2)
    for name, indices in rows_by_length[len(inputs)].items():
        if name not in layer.lora_A:  # this adapter has no weights in this layer
            continue
        rows = indices.to(inputs.device)  # another device only where a model is spread over several
        down, up = layer.lora_A[name], layer.lora_B[name]
        own_inputs, base = inputs[rows].to(down.weight.dtype), outputs[rows]
        if name in layer.lora_variant:  # DoRA
            tuned = layer.lora_variant[name].forward(layer, active_adapter=name, x=own_inputs, result=base)
        else:
            tuned = base + up(down(own_inputs)) * layer.scaling[name]
        outputs[rows] = tuned.to(outputs.dtype)
    return outputs.view(result.shape)
