"""What is minimised: a file each, and a row in `OBJECTIVES`."""

from collections.abc import Callable, MutableMapping
from typing import Any

from glmtune.objectives.base import Objective
from glmtune.objectives.sft import Sft
from glmtune.recipe.objective import ObjectiveSettings

__all__ = ["OBJECTIVES", "Objective", "Sft", "build_objective"]

OBJECTIVES: MutableMapping[str, Callable[[Any, Any], Objective]] = {"sft": lambda model, _: Sft(model)}
"""By the name in their settings: of a model and those settings, the objective."""


def build_objective(model: Any, settings: ObjectiveSettings) -> Objective:
    """The objective that the settings name, of a model whose intended weights can be trained."""
    return OBJECTIVES[settings.name](model, settings)
