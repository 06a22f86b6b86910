"""Training objectives: the losses to minimise, each in a file of its own and a row in `OBJECTIVES`."""

from collections.abc import Callable, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any

from glmtune.models.protocol import CausalLM
from glmtune.objectives.base import ObjectiveModule
from glmtune.objectives.sft import SftObjective
from glmtune.recipe.objective import ObjectiveSettings
from glmtune.renamed import find_renamed

__all__ = ["OBJECTIVES", "ObjectiveModule", "SftObjective", "build_objective"]

if not TYPE_CHECKING:
    __getattr__ = partial(find_renamed, __name__)

OBJECTIVES: MutableMapping[str, Callable[[Any, Any], ObjectiveModule]] = {
    "sft": lambda model, _: SftObjective(model),
}
"""Functions that build an objective from a model and its settings, by the `name` in the settings."""


def build_objective(model: CausalLM, settings: ObjectiveSettings) -> ObjectiveModule:
    """Return the objective that the settings name, for a model whose trainable weights are set."""
    return OBJECTIVES[settings.name](model, settings)
