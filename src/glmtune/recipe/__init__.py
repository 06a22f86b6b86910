"""The recipe: all settings of a run, their parsing and their help texts. Imports no torch."""

from functools import partial
from typing import TYPE_CHECKING

from glmtune.recipe.method import AdaLora, Freeze, Full, Lora, Method, Ptuning, TrainedPart
from glmtune.recipe.objective import Objective, Sft
from glmtune.recipe.parse import load_recipe, to_yaml
from glmtune.recipe.retain import Retain
from glmtune.recipe.settings import Data, Evaluation, Recipe, Samples
from glmtune.recipe.source import Source
from glmtune.recipe.train import Train
from glmtune.renamed import find_renamed

__all__ = [
    "AdaLora",
    "Data",
    "Evaluation",
    "Freeze",
    "Full",
    "Lora",
    "Method",
    "Objective",
    "Ptuning",
    "Recipe",
    "Retain",
    "Samples",
    "Sft",
    "Source",
    "Train",
    "TrainedPart",
    "load_recipe",
    "to_yaml",
]

if not TYPE_CHECKING:
    __getattr__ = partial(find_renamed, __name__)
