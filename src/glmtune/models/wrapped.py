"""Unwrap models from PEFT's wrapper, without importing PEFT, which takes seconds."""

from typing import Any

from glmtune.models.protocol import CausalLM


def causal_of(model: CausalLM) -> Any:
    """Return the language model itself, for a bare model and for one inside PEFT's wrapper."""
    return model.get_base_model() if is_wrapped(model) else model


def is_wrapped(model: CausalLM) -> bool:
    """Return True if the model is PEFT's wrapper."""
    # not by `peft_config`: PEFT sets that on the model inside too
    return hasattr(model, "get_base_model")
