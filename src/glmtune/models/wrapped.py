"""Models inside PEFT's wrapper."""

from typing import Any

from glmtune.models.protocol import CausalLM


def causal_of(model: CausalLM) -> Any:
    """The language model itself, whether it is given bare, wrapped by PEFT, or taken out of the wrapper.

    `peft_config` tells nothing: PEFT sets it on the wrapper and on the model inside.
    """
    return model.get_base_model() if is_wrapped(model) else model


def is_wrapped(model: CausalLM) -> bool:
    """Whether it is PEFT's wrapper; PEFT, which takes seconds to import, is not asked."""
    return hasattr(model, "get_base_model")
