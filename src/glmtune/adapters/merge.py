"""The weights that a trained model has where its base has others: adapters merged in, one layer at a time."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor

from glmtune.errors import CheckpointError

Changed = Mapping[str, Callable[[], Tensor]]
"""By the name in the base: what gives a weight, in fp32 where it is merged."""


def merged_weights(tuned: PeftModel) -> Changed:
    """The weights that an adapter of the LoRA family changes; nothing is computed before it is asked for.

    PEFT's own arithmetic on a copy of one layer in fp32, so LoRA, rsLoRA, DoRA and AdaLoRA are all exact.
    Raises `CheckpointError` for an adapter that changes biases.
    """
    config = tuned.peft_config[tuned.active_adapter]
    if getattr(config, "bias", "none") != "none" or getattr(config, "lora_bias", False):
        raise CheckpointError(
            f"adapter: it has biases (bias={config.bias!r} or lora_bias), which the base has no place for",
            hint="adapters without biases can be merged (bias none, no lora_bias); use this one as it is",
        )
    for key in ("target_parameters", "trainable_token_indices"):
        if getattr(config, key, None):
            raise CheckpointError(
                f"adapter: {key} is set, and only what changes the weights of whole layers is merged here",
                hint="merge it with PEFT: merge_and_unload(); or use this one as it is",
            )
    changed: dict[str, Callable[[], Tensor]] = {}
    for name, part in tuned.get_base_model().named_modules():
        if isinstance(part, BaseTunerLayer):
            changed[f"{name}.weight"] = _merging(part)
        elif isinstance(part, ModulesToSaveWrapper):
            own: Any = part.modules_to_save[tuned.active_adapter]
            changed |= {f"{name}.{leaf}": giving(value) for leaf, value in own.named_parameters()}
    return changed


def _merging(layer: Any) -> Callable[[], Tensor]:
    @torch.no_grad()
    def merge() -> Tensor:
        alone = deepcopy(layer).float()
        alone.merge()
        merged: Tensor = alone.get_base_layer().weight.detach()
        return merged

    return merge


def giving(value: Tensor) -> Callable[[], Tensor]:
    """What gives a weight that is there already."""
    return lambda: value.detach()
