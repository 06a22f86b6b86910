"""The settings of each objective. This module imports no torch."""

from collections.abc import MutableMapping
from typing import Annotated, Literal

from glmtune.recipe.base import OneOf, Settings


class ObjectiveSettings(Settings):
    """Base of all objectives."""

    name: str


class Sft(ObjectiveSettings):
    """Cross-entropy of the answers' tokens, each predicted from all tokens before it."""

    name: Literal["sft"] = "sft"


OBJECTIVE_SETTINGS: MutableMapping[str, type[ObjectiveSettings]] = {
    "sft": Sft,
}
"""The settings type of each objective, by its name."""
Objective = Annotated[Sft, OneOf(OBJECTIVE_SETTINGS)]
