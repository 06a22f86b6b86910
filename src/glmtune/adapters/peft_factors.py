"""A PEFT adapter's factors in a model: read them, and fill them in fp32 with the exact numbers of the files.

PEFT creates an adapter's weights in its base's type, fills them, and casts them to fp32 afterwards. On a bf16
base this left rounded numbers in fp32 tensors, for a pruned AdaLoRA and for layers created on the meta
device. Source: github.com/huggingface/peft v0.21.2, tuners/adalora/model.py, resize_modules_by_rank_pattern;
tuners/tuners_utils.py, _move_adapter_to_device_of_base_layer.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from glmtune.adapters.own_weights import require_equal_numbers, require_same, shapes_of
from glmtune.methods.lora import ADAPTER, widen_adapter
from glmtune.models.protocol import CausalLM


def adapter_weights(tuned: CausalLM, name: str = ADAPTER) -> dict[str, Tensor]:
    """Return an adapter's weights by their names in its files; a pruned AdaLoRA's without pruned triplets."""
    from peft import get_peft_model_state_dict

    # the parameters themselves, not the detached copies of `state_dict`, so that callers can write into them
    parameters = dict(tuned.named_parameters())
    weights: dict[str, Tensor] = get_peft_model_state_dict(
        tuned, parameters, adapter_name=name, save_embedding_layers=False
    )
    return weights


@torch.no_grad()
def fill_adapter(path: Path, tuned: CausalLM, stored: Mapping[str, Tensor], name: str = ADAPTER) -> None:
    """Cast an adapter that PEFT has created to fp32, and copy the stored numbers into it.

    Raises `CheckpointError` as `require_same`, and if the model then has other numbers.
    """
    widen_adapter(tuned, name)
    weights = adapter_weights(tuned, name)
    require_same(path, shapes_of(stored), shapes_of(weights))
    for key, weight in weights.items():
        weight.copy_(stored[key])
    require_equal_numbers(path, stored, adapter_weights(tuned, name))
