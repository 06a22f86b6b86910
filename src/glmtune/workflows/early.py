"""The checks made before torch is loaded (3 s): recipe, paths, packages, rows. `glmtune train` begins here.

First `training_recipe` builds the recipe, then `check_training` reads the rows; workflows.execute goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glmtune.adapters.card import ADAPTER_FILE, CARD_FILE
from glmtune.data.reader import SUFFIXES, read_dataset
from glmtune.errors import CheckpointError, ConfigError
from glmtune.extras import require_installed
from glmtune.files import given_path
from glmtune.locations import require_here, resolve, runs_hint
from glmtune.log import is_main_process
from glmtune.quants import EXTRAS
from glmtune.recipe import Recipe, load_recipe
from glmtune.recipe.parse import RecipeSource, build_recipe, join_layers, read_values
from glmtune.run_files import (
    LOG_FILE,
    PROCESS_FILE,
    RECIPE_FILE,
    follow,
    last_checkpoint,
    require_new,
    step_of,
)
from glmtune.run_process import alone_in
from glmtune.workflows.copies import CopyFolder
from glmtune.workflows.resuming import require_run, resume_command
from glmtune.workflows.rows import SplitRows, read_and_split

RECIPES_MODELS = Path("/models")
"""Folder in which the published recipes look for their models."""


def training_recipe(
    source: RecipeSource, words: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Recipe:
    """Build the recipe of a training run; `words` (`key=value`) and then `settings` override the source.

    The source may be the folder of a run. A recipe file without `output` gets `runs/<model>-<recipe>`, with
    the method behind it if the file's name does not say it. A method without a name takes the name from the
    adapter in `model`. Raises `ConfigError`, and `CheckpointError` for an adapter that cannot be read.
    """
    values = _run_values(given_path(source), words) if isinstance(source, str | Path) else None
    values = join_layers(values or read_values(source, words), read_values(settings or {}))
    # before the recipe is built: a method's settings are checked by its name, which the adapter's files have
    model, method = values.get("model"), values.get("method")
    if isinstance(model, str) and isinstance(method, dict) and "name" not in method:
        location = resolve(model, base=values.get("base"), revision=values.get("revision"))
        if location.adapter:
            from glmtune.adapters.peft_settings import read_settings
            from glmtune.adapters.store import own_method

            method["name"] = (own_method(location.adapter) or read_settings(location.adapter)).name
    recipe = build_recipe(values)
    if not isinstance(source, str | Path) or recipe.output or Path(source).name == RECIPE_FILE:
        return recipe  # recipe.yaml is the copy in a run's folder: its name says nothing
    stem, method_name = Path(source).stem, recipe.method.name
    output = _default_folder(recipe, stem if method_name in stem else f"{stem}-{method_name}")
    return recipe.model_copy(update={"output": output})


def _run_values(path: Path, words: Sequence[str]) -> dict[str, Any] | None:
    """Read the settings of a run's folder; None for a recipe file. Raises `ConfigError` for neither."""
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


def check_training(recipe: Recipe, *, resume: bool = False, begins: bool = True) -> SplitRows:
    """Refuse a model path to nothing and an occupied run folder; read and split the rows.

    Raises the same errors as `training`, which checks the rest. `begins`: False if no run is to begin, so
    that its folder may be there.
    """
    model, folder = _require_model(recipe), run_folder(recipe)
    if (resume or begins) and is_main_process():
        with alone_in(folder):
            pass  # `training` holds it; here another one is refused before rows are read
    if resume:
        require_run(folder, recipe.train.copy_to)
    # without `output`, an adapter's folder has its method in its name, which is not known yet
    elif begins and (recipe.output or (model and not recipe.base and (model / "config.json").exists())):
        require_startable(recipe, folder)
    _require_packages(recipe.quant)
    return read_and_split(recipe.data)


def _require_model(recipe: Recipe) -> Path | None:
    """Return the folder of a recipe's model; None for a name on a hub. Raises `CheckpointError`."""
    try:
        return require_here(recipe.model, recipe.revision)
    except CheckpointError as err:
        if given_path(recipe.model).parent != RECIPES_MODELS or RECIPES_MODELS.exists():
            raise
        own = "your model's folder, or a hub's name; or begin with model=glm-tiny, which is in the package"
        hint = f"recipes name a folder that few machines have: model=FOLDER says {own}"
        raise CheckpointError(str(err), hint=hint) from None


def recipe_for(source: RecipeSource, words: Sequence[str] = (), *, has_base: bool = False) -> Recipe:
    """Build the recipe of an evaluation: the settings of the run or adapter, overridden by the source's.

    `has_base`: a whole model may have a `base` too, which it is compared with.

    Raises `GlmtuneError`'s children; for a path to nothing and unreadable test rows without loading torch.
    """
    values = read_values(source, words)
    recipe = build_recipe(values)  # raises for unknown and missing settings before any file is looked at
    model = require_here(recipe.model, recipe.revision)
    # a plain model has no settings of its own; telling what else a folder is needs torch
    if not model or any((model / name).exists() for name in (RECIPE_FILE, CARD_FILE, ADAPTER_FILE)):
        named = {key: values.get(key) for key in ("base", "revision")}
        location = resolve(values["model"], **named, has_base=has_base)
        inherited: dict[str, Any] = {}
        if location.run:
            run_recipe = load_recipe(location.run / RECIPE_FILE).model_dump(mode="json")
            inherited = {key: run_recipe[key] for key in ("template", "quant", "data", "evaluate", "retain")}
        elif location.card:
            inherited["data"] = asdict(location.taught)
        recipe = build_recipe(inherited, values)
    _require_packages(recipe.quant)
    if recipe.data.test:
        read_dataset(recipe.data.test, recipe.data)
    return recipe


def _require_packages(quant: str | None) -> None:
    """Raise `MissingDependencyError` if a quantisation's package is missing, before rows are read."""
    if package := EXTRAS.get(quant or ""):
        require_installed(package, extra=package)


def run_folder(recipe: Recipe) -> Path:
    """Return the folder of a run: `output`, or `runs/<model>-<method>`."""
    return recipe.output or _default_folder(recipe, recipe.method.name)


def settled_folder(recipe: Recipe) -> Path:
    """Return the folder of a run; of one that goes on from an adapter, the method is in its name."""
    model = given_path(recipe.model)
    if recipe.output or (model / "config.json").exists() or not model.exists():
        return run_folder(recipe)
    from glmtune.workflows.parent import with_parent  # loads torch

    return run_folder(with_parent(recipe))


def _default_folder(recipe: Recipe, name: str) -> Path:
    return Path("runs") / f"{Path(recipe.model).resolve().name}-{name}"


def export_folder(path: str | Path, to: str, strength: float = 1.0) -> Path:
    """Return the default folder of an export, `exports/<name>-<to>`; a checkpoint goes by its run's name.

    A `strength` other than 1 is part of the name.
    """
    folder = given_path(path)
    source = follow(folder).resolve() if folder.exists() else folder
    run = source.parent.parent  # of <run>/checkpoints/step-000100
    is_checkpoint = step_of(source) is not None and (run / RECIPE_FILE).exists()
    at = "" if strength == 1 else f"-strength-{strength:g}"
    return Path("exports") / f"{(run if is_checkpoint else source).name}-{to}{at}"


def require_startable(recipe: Recipe, folder: Path) -> None:
    """Raise `ConfigError` unless a new run can begin in the folder."""
    alternative = ""
    if (folder / RECIPE_FILE).exists():
        if last_checkpoint(folder):
            alternative = f", or go on with it: {resume_command(folder)}"
        else:
            alternative = ", or delete it: it has no checkpoint yet"
    # a run that is started with --detach has its log there before it begins
    hint = f"name another with output=...{alternative}"
    require_new(folder, hint=hint, besides=(LOG_FILE, PROCESS_FILE))
    if (url := recipe.train.copy_to) and CopyFolder(url).copies():
        raise ConfigError(
            f"train.copy_to: {url}: has the checkpoints of a run",
            hint="name another folder there; or go on with that run: the same command with `--resume`",
        )
