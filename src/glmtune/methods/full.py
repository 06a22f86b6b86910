"""Full fine-tuning: every weight."""

from typing import Any

from glmtune.errors import ConfigError
from glmtune.models.quant import quantised_layers
from glmtune.recipe import Full


def apply_full(model: Any, settings: Full) -> Any:
    """Make every weight trainable. Raises ConfigError for a quantised model: codes cannot be trained."""
    if quantised_layers(model):
        raise ConfigError(
            "method.name: full, but the model is quantised (int8 or int4): its codes cannot be trained",
            hint="method.name=lora, or the original, unquantised folder without quant",
        )
    return model.requires_grad_(True)
