"""What is minimised: a file each, and a row in `OBJECTIVES`."""

from collections.abc import Callable, MutableMapping
from typing import Any

from glmtune.models.protocol import CausalLM
from glmtune.objectives.base import ObjectiveModule
from glmtune.objectives.sft import SftObjective
from glmtune.recipe.objective import ObjectiveSettings

__all__ = ["OBJECTIVES", "ObjectiveModule", "SftObjective", "build_objective"]

OBJECTIVES: MutableMapping[str, Callable[[Any, Any], ObjectiveModule]] = {
    "sft": lambda model, _: SftObjective(model),
}
"""By the name in their settings: of a model and those settings, the objective."""


def build_objective(model: CausalLM, settings: ObjectiveSettings) -> ObjectiveModule:
    """The objective that the settings name, of a model whose intended weights can be trained."""
    return OBJECTIVES[settings.name](model, settings)
