"""Full fine-tuning: every weight."""

from typing import Any

from glmtune.recipe import Full


def apply_full(model: Any, settings: Full) -> Any:
    """Make every weight trainable."""
    return model.requires_grad_(True)
