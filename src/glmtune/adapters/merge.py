"""Base + adapter merged by the definition of LoRA: the weights that an adapter changes, one at a time."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from glmtune.adapters.factors import START, Factors, is_part, read_factors
from glmtune.adapters.peft_rules import read_adapter_config
from glmtune.adapters.store import stored_tensors
from glmtune.adapters.strength import blend
from glmtune.errors import CheckpointError
from glmtune.models.shards import Stored, read_stored

Changed = Mapping[str, Callable[[Stored], Tensor]]
"""Functions, by a weight's name in the base, that give the changed weight for the base's (fp32 if merged)."""


def merged_weights(adapter: Path, strength: float = 1.0) -> Changed:
    """Return the weights that a LoRA or AdaLoRA folder changes, each computed when its function is called.

    `strength` as in `adapters.strength`. Raises `CheckpointError` for an adapter that changes more than the
    weights of whole layers.
    """
    _require_whole_layers(read_adapter_config(adapter))
    return changed_weights(adapter, strength)


def changed_weights(adapter: Path, strength: float = 1.0) -> Changed:
    """Return the weights of whole layers that an adapter changes, whatever else it may change."""
    settings, tensors = read_adapter_config(adapter), stored_tensors(adapter)
    factors = read_factors(tensors, settings)
    merged = {f"{layer}.weight": partial(_merge, update.at(strength)) for layer, update in factors.items()}
    # PEFT's modules_to_save: whole weights that replace the base's
    whole = {
        name.removeprefix(START): giving(tensor, strength)
        for name, tensor in tensors.items()
        if not is_part(name)
    }
    return {**merged, **whole}


def _require_whole_layers(settings: Mapping[str, Any]) -> None:
    bias = settings.get("bias", "none")
    if bias != "none" or settings.get("lora_bias"):
        raise CheckpointError(
            f"adapter: it has biases (bias={bias!r} or lora_bias), which the base has no place for",
            hint="adapters without biases can be merged (bias none, no lora_bias); use this one as it is",
        )
    for key in ("target_parameters", "trainable_token_indices"):
        if settings.get(key):
            raise CheckpointError(
                f"adapter: {key} is set, and only what changes the weights of whole layers is merged here",
                hint="merge it with PEFT: merge_and_unload(); or use this one as it is",
            )


def _merge(update: Factors, base: Stored) -> Tensor:
    return update.merge(read_stored(base))


def giving(value: Tensor, strength: float = 1.0) -> Callable[[Stored], Tensor]:
    """Return a function that gives this tensor instead of the base's weight, or the two mixed."""
    return lambda base: value if strength == 1 else blend(read_stored(base), value, strength)
