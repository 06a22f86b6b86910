"""Full fine-tuning: every weight."""

from typing import Any

from glmtune.errors import ConfigError
from glmtune.models.protocol import CausalLM
from glmtune.models.quant import held_quant
from glmtune.recipe.method import Full


def apply_full(model: CausalLM, settings: Full) -> Any:
    """Make every weight trainable. Raises ConfigError for a quantised model: codes cannot be trained."""
    held = held_quant(model)
    if held:
        raise ConfigError(
            f"method.name: full, but the model is quantised ({held}): its codes cannot be trained",
            hint="method.name=lora, or the original, unquantised folder without quant",
        )
    return model.requires_grad_(True)
