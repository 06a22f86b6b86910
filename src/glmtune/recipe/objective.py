"""The settings of each objective. This module imports no torch."""

from collections.abc import MutableMapping
from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from glmtune.recipe.base import Settings, reading


class ObjectiveSettings(Settings):
    """What every objective has: its name."""

    name: str


class Sft(ObjectiveSettings):
    """Cross-entropy of the answers' tokens, each predicted from all before it."""

    name: Literal["sft"] = "sft"


OBJECTIVE_SETTINGS: MutableMapping[str, type[ObjectiveSettings]] = {"sft": Sft}
"""By their names: the members of `Objective`."""

Objective = Annotated[SerializeAsAny[Sft], Field(discriminator="name"), reading(OBJECTIVE_SETTINGS)]
