"""An adapter of PEFT's as a model holds it: its factors in fp32, with the numbers of its files.

PEFT makes an adapter's weights in its base's type, fills them there, and widens them after: so of a pruned
AdaLoRA, and of whatever is put in without memory first, bf16 roundings were left in tensors that say fp32.
Source: github.com/huggingface/peft v0.21.2, tuners/adalora/model.py, resize_modules_by_rank_pattern;
tuners/tuners_utils.py, _move_adapter_to_device_of_base_layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.adapters.own_weights import require_equal_numbers, require_same, shapes_of
from glmtune.methods.lora import ADAPTER, widen_adapter


def held_adapter(tuned: Any, name: str = ADAPTER) -> dict[str, Tensor]:
    """The weights of an adapter by their names in its files; those of a pruned AdaLoRA as they are saved."""
    from peft import get_peft_model_state_dict

    own = dict(tuned.named_parameters())
    held: dict[str, Tensor] = get_peft_model_state_dict(
        tuned, own, adapter_name=name, save_embedding_layers=False
    )
    return held


@torch.no_grad()
def fill_adapter(path: Path, tuned: Any, stored: Mapping[str, Tensor], name: str = ADAPTER) -> None:
    """Give an adapter that PEFT has put on the numbers that are stored.

    Raises `CheckpointError` as `require_same`, and if the model holds other numbers then.
    """
    widen_adapter(tuned, name)
    held = held_adapter(tuned, name)
    require_same(path, shapes_of(stored), shapes_of(held))
    for key, weight in held.items():
        weight.copy_(stored[key])
    require_equal_numbers(path, stored, held_adapter(tuned, name))
