"""Full fine-tuning: train every weight."""

from typing import Any

from glmtune.errors import ConfigError
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import held_quant
from glmtune.recipe.method import Full


def apply_full(model: CausalLM, settings: Full) -> Any:
    """Make every weight trainable. Raises ConfigError for a quantised model: codes cannot be trained."""
    quant = held_quant(model)
    if quant:
        raise ConfigError(
            f"method.name: full, but the model is quantised ({quant}): its codes cannot be trained",
            hint="method.name=lora, or the original, unquantised folder without quant",
        )
    return model.requires_grad_(True)
