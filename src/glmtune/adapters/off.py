"""The base under an adapter: a model answers as before, while what was put on it is switched off."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from glmtune.errors import ConfigError
from glmtune.log import without_false_alarms
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import causal_of

with without_false_alarms():  # PEFT imports bitsandbytes, which gives a warning of no use here
    from peft.tuners.tuners_utils import BaseTunerLayer

_CHANGE_MORE = ("modules_to_save", "trainable_token_indices", "target_parameters")
"""Keys of adapter_config.json that change the base itself, not only layers that can be switched off."""


def changes_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the settings by which an adapter changes the base even while its layers are switched off."""
    changes = [key for key in _CHANGE_MORE if settings.get(key)]
    return [*changes, "bias"] if settings.get("bias", "none") != "none" else changes


@contextmanager
def without_adapter(model: CausalLM) -> Iterator[None]:
    """Inside, the model is its base: its low-rank adapter or prefix is off, to the bit.

    Which weights are trained, and their gradients, stay as they are. Raises ConfigError for a model that has
    nothing to switch off (full, freeze, a merged adapter) or whose adapter changes the base itself.
    """
    causal = causal_of(model)
    configs: dict[str, Any] = vars(causal).get("peft_config", {})  # PEFT sets it on the model inside too
    for name, config in configs.items():
        if changes := changes_of(config.to_dict()):
            raise ConfigError(
                f"adapter {name}: {changes[0]} is set, so the base under it is not the base",
                hint="open the base itself from its own folder",
            )
    layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        raise ConfigError(
            "the adapter is merged into the base's weights, and cannot be switched off",
            hint="load base and adapter unmerged",
        )
    off = [layer for layer in layers if not layer.disable_adapters]
    # under an adapter of layers a prefix is the base's own
    prefix = None if off else getattr(causal.base_model, "prefix_encoder", None)
    if not layers and prefix is None:
        raise ConfigError(
            "this model has no adapter to switch off: its own weights were trained",
            hint="record what its base says before step 1",
        )
    # PEFT makes the factors that it switches on trainable, and the others not
    flags = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    try:
        for layer in off:
            layer.enable_adapters(False)
        if prefix is not None:
            causal.hold_prefix(None)
        yield
    finally:
        for layer in off:
            layer.enable_adapters(True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        if prefix is not None:
            causal.hold_prefix(prefix)
