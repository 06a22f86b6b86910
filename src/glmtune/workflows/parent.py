"""Training that goes on from an adapter, a checkpoint or a run: settings that this parent fixes."""

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
    """Return the recipe with the settings that its parent fixes; a recipe of an untrained model as it is.

    A parent fixes the checkpoint (a run's best one may change later) and, if it is an adapter, the method and
    the base's quantisation. Raises `ConfigError` for a method setting that differs from the adapter's.
    """
    location = resolve(recipe.model, base=recipe.base, revision=recipe.revision)
    if not (location.adapter or location.run):
        return recipe
    # the checkpoint itself instead of its run: recipe.yaml means the same when the run's best has changed
    pinned: dict[str, Any] = {"model": str(location.trained.resolve()), "revision": None}
    if location.adapter:
        pinned["method"] = _adapter_method(recipe, location.adapter, location.name)
        pinned["quant"] = recipe.quant or location.quant
    output = run_folder(recipe.model_copy(update={"method": pinned.get("method", recipe.method)}))
    return recipe.model_copy(update={**pinned, "output": output})


def _adapter_method(recipe: Recipe, adapter: Path, base: str) -> Method:
    """Return the adapter's method; settings that the recipe names must equal the adapter's."""
    require_ours(adapter)
    method = own_method(adapter) or read_settings(adapter)
    named = recipe.method.model_fields_set if "method" in recipe.model_fields_set else set()
    for key in sorted(named, key=lambda key: (key != "name", key)):  # the name first: it tells most
        asked, trained = getattr(recipe.method, key), getattr(method, key, None)
        if asked != trained:
            raise ConfigError(
                f"method.{key}: {asked}, but {recipe.model} was trained with {trained}",
                hint=f"leave the method's settings out, for they are the adapter's; to train with others, "
                f"begin with its base: model={base}",
            )
    return method


def is_pruned(location: Location) -> bool:
    """True if the location has an AdaLoRA adapter whose ranks have settled: training on prunes no further."""
    return bool(location.adapter and read_adapter_config_if_there(location.adapter).get("rank_pattern"))


def text_warnings(data: Data, location: Location) -> Iterator[Note]:
    """Yield a warning for a system text or source prefix that differs from the parent's."""
    if not location.card:
        return
    before = asdict(location.taught)
    for name, now in asdict(Taught.of(data)).items():
        if (now or "") != (before[name] or ""):
            text = (
                f"data.{name}: {now or ''!r}, but {location.trained} was trained with {before[name] or ''!r}"
            )
            yield Note(text, is_warning=True)
