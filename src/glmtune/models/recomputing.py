"""Recompute the activations of a model's layers in the backward pass, of all of them or of the first ones.

Of the layers that are not recomputed the last ones are the best: the backward pass begins with them, so what
they keep is gone before the first layers need memory for their recomputation.
"""

from torch import nn
from transformers import GradientCheckpointingLayer

from glmtune.errors import ConfigError
from glmtune.log import without_false_alarms
from glmtune.models.protocol import CausalLM


def layers_of(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the repeated layers of a model, the first one first, also of one inside PEFT's wrapper."""
    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]


def recompute(model: CausalLM, setting: bool | int) -> None:
    """Recompute the activations of all layers, of the first so many, or of none, as the setting says.

    Raises `ConfigError` for more layers than there are.
    """
    layers = layers_of(model)
    number = len(layers) * setting if isinstance(setting, bool) else setting
    if number > len(layers):
        raise ConfigError(
            f"train.gradient_checkpointing: {number}, but this model has {len(layers)} layers",
            hint="train.gradient_checkpointing=true recomputes all of them",
        )
    if number:
        with without_false_alarms():
            # re-entrant checkpointing needs an input that requires a gradient: frozen embeddings give none
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for i, layer in enumerate(layers):
        layer.gradient_checkpointing = i < number
