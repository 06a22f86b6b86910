"""Going on from what was trained: what the parent settles of a recipe, and what it was told."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glmtune.adapters.peft_rules import read_adapter_config_if_there
from glmtune.adapters.peft_settings import read_settings, require_ours
from glmtune.adapters.store import own_method
from glmtune.errors import ConfigError
from glmtune.locations import Location, resolve
from glmtune.recipe import Data, Method, Recipe
from glmtune.templates import Taught
from glmtune.workflows.early import run_folder
from glmtune.workflows.events import Note


def with_parent(recipe: Recipe) -> Recipe:
    """The recipe with what its model settles, where that is something trained: the checkpoint that it means
    now and, of an adapter, the method and the base's quantisation.

    Raises `ConfigError` for settings of a method that the adapter does not have.
    """
    location = resolve(recipe.model, base=recipe.base, revision=recipe.revision)
    if not (location.adapter or location.run):
        return recipe
    pinned: dict[str, Any] = {"model": str(location.trained.resolve()), "revision": None}
    if location.adapter:
        pinned["method"] = _settle(recipe, location.adapter, location.name)
        pinned["quant"] = recipe.quant or location.quant
    output = run_folder(recipe.model_copy(update={"method": pinned.get("method", recipe.method)}))
    return recipe.model_copy(update={**pinned, "output": output})


def _settle(recipe: Recipe, adapter: Path, base: str) -> Method:
    """The adapter's method, which may be named in the recipe too."""
    require_ours(adapter)
    its = own_method(adapter) or read_settings(adapter)
    named = recipe.method.model_fields_set if "method" in recipe.model_fields_set else set()
    for key in sorted(named, key=lambda key: (key != "name", key)):
        given, had = getattr(recipe.method, key), getattr(its, key, None)
        if given != had:
            raise ConfigError(
                f"method.{key}: {given}, but {recipe.model} was trained with {had}",
                hint=f"leave the method's settings out, for they are the adapter's; to train with others, "
                f"begin with its base: model={base}",
            )
    return its


def is_pruned(location: Location) -> bool:
    """Whether an AdaLoRA's ranks have settled already, so that they stay."""
    return bool(location.adapter and read_adapter_config_if_there(location.adapter).get("rank_pattern"))


def text_warnings(data: Data, location: Location) -> Iterator[Note]:
    """What the parent was told with every question and this run is not."""
    if not location.card:
        return
    before = asdict(location.taught)
    for name, now in asdict(Taught.of(data)).items():
        if (now or "") != (before[name] or ""):
            text = (
                f"data.{name}: {now or ''!r}, but {location.trained} was trained with {before[name] or ''!r}"
            )
            yield Note(text, is_warning=True)
