"""What can be told before torch is loaded: which run is meant, and what is wrong with paths and rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glmtune.adapters.card import ADAPTER_FILE, CARD_FILE
from glmtune.data.reader import SUFFIXES, read_dataset
from glmtune.errors import ConfigError
from glmtune.extras import require_installed
from glmtune.files import given_path
from glmtune.locations import require_here, resolve, runs_hint
from glmtune.quants import EXTRAS
from glmtune.recipe import Data, Recipe, load_recipe
from glmtune.recipe.parse import RecipeSource, build_recipe, join_layers, read_values
from glmtune.run_files import RECIPE_FILE, follow, last_checkpoint, require_new, step_of
from glmtune.workflows.resuming import require_run, resuming
from glmtune.workflows.rows import SplitRows, read_and_split


def training_recipe(
    source: RecipeSource, words: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe of a training, `settings` on top; one of a method without a name is of its parent's method.

    A source may be the folder of a run; a recipe file that names no folder gets one of its own. Raises
    `ConfigError`, and `CheckpointError` for a parent that cannot be read.
    """
    values = _run_values(given_path(source), words) if isinstance(source, str | Path) else None
    values = join_layers(values or read_values(source, words), read_values(settings or {}))
    model, method = values.get("model"), values.get("method")
    if isinstance(model, str) and isinstance(method, dict) and "name" not in method:
        location = resolve(model, base=values.get("base"), revision=values.get("revision"))
        if location.adapter:
            from glmtune.adapters.peft_settings import read_settings
            from glmtune.adapters.store import own_method

            method["name"] = (own_method(location.adapter) or read_settings(location.adapter)).name
    recipe = build_recipe(values)
    return _with_folder(recipe, Path(source)) if isinstance(source, str | Path) else recipe


def _run_values(path: Path, words: Sequence[str]) -> dict[str, Any] | None:
    """The settings of a run, by its folder; None for a file of a recipe."""
    if path.is_dir():
        if (path / RECIPE_FILE).exists():
            return read_values(path / RECIPE_FILE, [f"output={path}", *words])
        raise ConfigError(
            f"{path}: not the folder of a run (no {RECIPE_FILE})",
            hint=f"a model folder goes in as model={path}",
        )
    is_file = path.exists() or path.suffix in {".yaml", ".yml", *SUFFIXES}
    if not is_file and (runs := runs_hint(path)):
        raise ConfigError(f"{path}: no such run or recipe", hint=runs)
    return None


def check_training(recipe: Recipe, *, resume: bool) -> SplitRows:
    """Refuse a path to nothing and an occupied folder; read and split the rows.

    Raises `GlmtuneError`'s children, as `training` does for the same; it looks at the rest.
    """
    model, folder = require_here(recipe.model, recipe.revision), run_folder(recipe)
    if resume:
        require_run(folder)
    elif recipe.output or (model and not recipe.base and (model / "config.json").exists()):
        require_startable(recipe, folder)  # an adapter's method, in the folder's name, is not known yet
    _require_packages(recipe.quant)
    return read_and_split(recipe.data)


def recipe_for(source: RecipeSource, words: Sequence[str] = ()) -> Recipe:
    """The recipe of an evaluation: the run's or adapter's own settings, with the source's on top.

    Raises `GlmtuneError`'s children; for a path to nothing, and test rows that cannot be read, without torch.
    """
    values = read_values(source, words)
    named = build_recipe(values)  # says what is missing or wrong
    if (model := require_here(named.model, named.revision)) and _is_plain(model):
        _check_rows(named.data, named.quant)
        return named
    location = resolve(values["model"], base=values.get("base"), revision=values.get("revision"))
    own: dict[str, Any] = {}
    if location.run:
        known = load_recipe(location.run / RECIPE_FILE).model_dump(mode="json")
        own = {key: known[key] for key in ("template", "quant", "data", "evaluate")}
    elif location.card:
        own["data"] = asdict(location.taught)
    recipe = build_recipe(own, values)
    _check_rows(recipe.data, recipe.quant)
    return recipe


def _is_plain(model: Path) -> bool:
    """Whether a folder is a model that has no settings of its own: not trained here, no adapter."""
    return not any((model / name).exists() for name in (RECIPE_FILE, CARD_FILE, ADAPTER_FILE))


def _require_packages(quant: str | None) -> None:
    """Before rows are read, which may take long."""
    if package := EXTRAS.get(quant or ""):
        require_installed(package, extra=package)


def _check_rows(data: Data, quant: str | None) -> None:
    _require_packages(quant)
    if data.test:
        read_dataset(data.test, data)


def run_folder(recipe: Recipe) -> Path:
    """`output`, or `runs/<model>-<method>`."""
    return recipe.output or _default_folder(recipe, recipe.method.name)


def _with_folder(recipe: Recipe, source: Path) -> Recipe:
    """The recipe of a file with a folder named after that: `runs/<model>-<recipe>`, where it names none.

    The method stands behind it where the file's name does not say it.
    """
    name, method = source.stem, recipe.method.name
    if recipe.output or source.name == RECIPE_FILE:  # a run's own, which says nothing
        return recipe
    output = _default_folder(recipe, name if method in name else f"{name}-{method}")
    return recipe.model_copy(update={"output": output})


def _default_folder(recipe: Recipe, name: str) -> Path:
    return Path("runs") / f"{Path(recipe.model).resolve().name}-{name}"


def export_folder(path: str | Path, to: str) -> Path:
    """`exports/<name>-<to>`, for an export whose folder is not named; a checkpoint has its run's name."""
    folder = given_path(path)
    whole = follow(folder).resolve() if folder.exists() else folder
    is_inside = step_of(whole) is not None and (whole.parent.parent / RECIPE_FILE).exists()
    return Path("exports") / f"{(whole.parent.parent if is_inside else whole).name}-{to}"


def require_startable(recipe: Recipe, folder: Path) -> None:
    """Raise `ConfigError` unless a new run can begin in the folder."""
    way = ""
    if (folder / RECIPE_FILE).exists():
        is_saved = last_checkpoint(folder) is not None
        way = f"go on with it: {resuming(folder)}" if is_saved else "delete it: it has no checkpoint yet"
        way = f", or {way}"
    require_new(folder, hint=f"name another with output=...{way}")
