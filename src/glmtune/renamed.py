"""Public names of sub-packages that were renamed: each old name works for one release and warns."""

import warnings
from importlib import import_module

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
