"""Going on with a run as it began, and with nothing else. Loads no torch."""

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.files import read_json
from glmtune.locations import lasting_name, runs_hint
from glmtune.recipe import Data, Recipe, load_recipe
from glmtune.run_files import ENVIRONMENT_FILE, RECIPE_FILE, last_checkpoint
from glmtune.values import shown
from glmtune.workflows.rows import full_path, hash_rows


def resuming(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"`glmtune train {shlex.quote(str(folder))} --resume`"


def training_on(folder: Path, words: str = "") -> str:
    """The command that trains on from a run's weights with its own recipe, `words` on top of it."""
    name = shlex.quote(str(folder))
    return f"`{' '.join(filter(None, ('glmtune train', name, f'model={name}', words, 'output=NEW')))}`"


def require_run(folder: Path) -> None:
    """Raise `ConfigError` unless there is a run in the folder that can be gone on with."""
    if not (folder / RECIPE_FILE).exists():
        others = runs_hint(folder) or "`glmtune runs` lists those that there are"
        raise ConfigError(f"{folder}: no run to resume here", hint=f"leave resume out to begin it; {others}")
    if not last_checkpoint(folder):
        raise ConfigError(
            f"{folder}: this run has no checkpoint to resume from", hint="delete it and train anew"
        )


def require_resumable(recipe: Recipe, folder: Path) -> None:
    """Going on with other settings or other rows would be neither run."""
    require_run(folder)
    known = load_recipe(folder / RECIPE_FILE)
    before, now = (_settings(with_full_paths(r).model_dump(mode="json")) for r in (known, recipe))
    changed = [key for key in {**now, **before} if key != "output" and before.get(key) != now.get(key)]
    files = [key for key in ("data.train", "data.validation") if key in changed]
    if not files:  # else their hashes are of other files
        _require_same_rows(recipe.data, folder)
    if changed:
        key = (files or changed)[0]
        value = now.get(key)
        typed = value if isinstance(value, str) else json.dumps(value)
        word = "" if value is None else shlex.quote(f"{key}={typed}")
        # whole paths: two lists of files may differ behind what `shown` keeps
        told = partial(json.dumps, ensure_ascii=False) if files else shown
        raise ConfigError(
            f"{folder}: {key} is {told(before.get(key))} in this run, {told(now.get(key))} here",
            hint=f"a run is resumed as it began: {resuming(folder)}; "
            f"with other settings another one goes on from it: {training_on(folder, word)}",
        )


def _require_same_rows(data: Data, folder: Path) -> None:
    hashes = read_json(folder / ENVIRONMENT_FILE, is_ours=True)
    for name, digest in hash_rows(data).items():
        if hashes.get(name) != digest:
            raise ConfigError(
                f"{folder}: {_changed(data, name, hashes.get(name), digest)} since this run began",
                hint="train anew, with another folder: output=FOLDER",
            )


def _changed(data: Data, name: str, before: Any, now: str) -> str:
    """In words, which file is not what it was; of several training files the first."""
    if len(data.sources) < 2 or name != "train_sha256":
        return f"the {name.removesuffix('_sha256')} file has changed"
    hashes = zip(str(before).split(" "), now.split(" "), strict=False)
    changed = next((index for index, (old, new) in enumerate(hashes) if old != new), 0)
    return f"the training file {data.sources[changed].path} has changed"


def _settings(values: dict[str, Any], group: str = "") -> dict[str, Any]:
    """The values by their settings' full names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _settings(value, f"{group}{name}.") if isinstance(value, dict) else {f"{group}{name}": value}
    return flat


def as_begun(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe, with the model's revision and type that its run began with where it names none itself."""
    known = folder / RECIPE_FILE
    if not known.exists():
        return recipe
    begun = load_recipe(known)
    settled = {
        "revision": begun.revision if recipe.revision is None else recipe.revision,
        "dtype": begun.dtype if recipe.dtype == "auto" else recipe.dtype,
    }
    return recipe.model_copy(update=settled)


def with_full_paths(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that it means the same from anywhere."""
    data: dict[str, Any] = {
        name: full_path(path)
        for name in ("train", "validation", "test")
        if isinstance(path := getattr(recipe.data, name), Path)
    }
    if isinstance(recipe.data.train, tuple):
        data["train"] = tuple(
            source.model_copy(update={"path": full_path(source.path)}) for source in recipe.data.train
        )
    models = {"model": lasting_name(recipe.model), "base": recipe.base and Path(lasting_name(recipe.base))}
    return recipe.model_copy(update={**models, "data": recipe.data.model_copy(update=data)})
