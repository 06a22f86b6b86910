"""Public names of sub-packages that were renamed: each old name works for one release and warns."""

import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

RENAMED = {
    "glmtune.generate.answer": "glmtune.generate.complete_texts",
    "glmtune.migration.migrate": "glmtune.migration.migrate_path",
    "glmtune.objectives.Objective": "glmtune.objectives.ObjectiveModule",
    "glmtune.objectives.Sft": "glmtune.objectives.SftObjective",
    "glmtune.recipe.Kept": "glmtune.recipe.TrainedPart",
    "glmtune.templates.find": "glmtune.templates.find_template",
    "glmtune.tokenizers.load_tokenizer": "glmtune.tokenizers.read_tokenizer",
    "glmtune.tokenizers.open_identified": "glmtune.tokenizers.read_identified_tokenizer",
}
"""Old name -> new name."""


def find_renamed(module: str, name: str) -> object:
    """Return the object that `name` of this module is called now, with a DeprecationWarning.

    A package binds the first argument and takes the rest as its `__getattr__` (PEP 562), hidden from type
    checkers: with it they would believe any name of the package. Raises AttributeError for other names.
    """
    old = f"{module}.{name}"
    if old not in RENAMED:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    home, _, new_name = RENAMED[old].rpartition(".")
    text = f"{old} is now {RENAMED[old]}; the old name goes with the next release"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    return getattr(import_module(home), new_name)


def keyword_renamed(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a decorator: a keyword argument of its function goes by the old name too, with a warning."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                text = f"{function.__name__}: {old}= is now {new}=; the old name goes with the next release"
                warnings.warn(text, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
