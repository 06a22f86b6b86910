"""See through wrappers: PEFT's, without importing PEFT, which takes seconds, and hooks on a module."""

from typing import Any

from torch import nn

from glmtune.models.protocol import CausalLM


def causal_of(model: CausalLM) -> Any:
    """Return the language model itself, for a bare model and for one inside PEFT's wrapper."""
    return model.get_base_model() if is_wrapped(model) else model


def is_wrapped(model: CausalLM) -> bool:
    """Return True if the model is PEFT's wrapper."""
    # not by `peft_config`: PEFT sets that on the model inside too
    return hasattr(model, "get_base_model")


def is_hooked(part: nn.Module) -> bool:
    """Return True if calling a module does more than its class's `forward`."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return any(hooks) or "forward" in vars(part)  # accelerate puts its own into the instance
