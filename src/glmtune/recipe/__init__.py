"""The recipe: all settings of a run, their parsing and their description. No torch here."""

from glmtune.recipe.parse import load_recipe, to_yaml
from glmtune.recipe.settings import Data, Evaluation, Full, Lora, Method, Recipe, Samples, Train

__all__ = [
    "Data",
    "Evaluation",
    "Full",
    "Lora",
    "Method",
    "Recipe",
    "Samples",
    "Train",
    "load_recipe",
    "to_yaml",
]
