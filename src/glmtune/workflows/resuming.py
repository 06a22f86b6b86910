"""Resume a run with the settings and rows it began with. Loads no torch."""

import hashlib
import json
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.files import read_json
from glmtune.locations import lasting_name, runs_hint
from glmtune.recipe import Data, Recipe, load_recipe
from glmtune.run_files import ENVIRONMENT_FILE, RECIPE_FILE, REPLAY_FILE, list_checkpoints
from glmtune.run_process import own_command
from glmtune.values import shown
from glmtune.workflows.rows import full_path, hash_rows

FREE = {"output", "train.report_to"}
"""Settings that may be others when a run is resumed, without a word: the folder may have moved, and no figure
depends on where it is shown."""
CADENCE = {
    "train.log_every", "train.eval_every", "train.save_every", "train.keep_checkpoints", "train.copy_to",
    "samples.prompts", "samples.built_in", "samples.max_new_tokens", "data.test", "data.max_test_rows",
    "evaluate.max_new_tokens", "evaluate.batch_size", "evaluate.compute", "evaluate.strength",
}  # fmt: skip
"""Settings that change no step: they may be others from here on, and recipe.yaml then has the new ones."""
LENGTH = {"train.steps", "train.epochs"}
"""Settings that change no step that is made already, where neither rate nor method depends on the length."""


def resume_words(folder: Path, command: str) -> str:
    """Return the command that resumes a run, with as many processes as the one that `command` began."""
    number = re.search(r"--nproc[ =](\d+)", command)
    return f"glmtune train {shlex.quote(str(folder))} --resume" + (f" --nproc {number[1]}" if number else "")


def resume_command(folder: Path) -> str:
    """Return the command that resumes a run as this process was begun, for hints."""
    return f"`{resume_words(folder, own_command())}`"


def train_on_command(folder: Path, words: str = "") -> str:
    """Return the command that trains a new run from a run's weights and recipe, `words` overriding that."""
    name = shlex.quote(str(folder))
    return f"`{' '.join(filter(None, ('glmtune train', name, f'model={name}', words, 'output=NEW')))}`"


def require_run(folder: Path, url: str | None = None) -> None:
    """Raise `ConfigError` unless the folder has a run with a checkpoint, or a URL may have its copy."""
    if url:
        return
    if not (folder / RECIPE_FILE).exists():
        others = runs_hint(folder) or "`glmtune runs` lists those that there are"
        raise ConfigError(f"{folder}: no run to resume here", hint=f"leave resume out to begin it; {others}")
    # not by the link `last`: it may lead to one that is gone, while others are whole
    if not list_checkpoints(folder):
        raise ConfigError(
            f"{folder}: this run has no checkpoint to resume from", hint="delete it and train anew"
        )


def require_resumable(recipe: Recipe, folder: Path) -> dict[str, str]:
    """Return the settings that are others from here on, each with its old and new value in words.

    Raises `ConfigError` naming all settings that change a step, or if the rows have changed.
    """
    require_run(folder)
    begun = as_begun(load_recipe(folder / RECIPE_FILE), folder)
    recipes = (begun, as_begun(recipe, folder))
    before, now = (_flatten(with_full_paths(r).model_dump(mode="json")) for r in recipes)
    changed = [key for key in {**now, **before} if key not in FREE and before.get(key) != now.get(key)]
    files = [key for key in ("data.train", "data.validation") if key in changed]
    if not files:  # with other files named, their hashes cannot be compared
        _require_same_rows(recipe.data, folder)
    _require_same_replay(folder)
    may_be_longer = not (folder / REPLAY_FILE).exists() and not any(
        each.method.depends_on_length or each.train.schedule != "constant" for each in recipes
    )
    free = CADENCE | LENGTH if may_be_longer else CADENCE
    free |= {key for key in changed if key.startswith("distributed.")}  # an engine makes the same steps
    refused = [*files, *(key for key in changed if key not in free and key not in files)]
    if refused:
        # paths in full: `shown` cuts long values, and two lists of files may differ only behind the cut
        show = partial(json.dumps, ensure_ascii=False)
        told = (
            f"{key} is {(show if key in files else shown)(before.get(key))} in this run, "
            f"{(show if key in files else shown)(now.get(key))} here"
            for key in refused
        )
        words = " ".join(
            shlex.quote(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
            for key in refused
            if (value := now.get(key)) is not None
        )
        raise ConfigError(
            f"{folder}: {'; '.join(told)}",
            hint=f"a run is resumed as it began: {resume_command(folder)}; "
            f"with other settings another one goes on from it: {train_on_command(folder, words)}",
        )
    return {key: f"{shown(before.get(key))} so far, {shown(now.get(key))} from here" for key in changed}


def _require_same_rows(data: Data, folder: Path) -> None:
    """Raise `ConfigError` naming the first data file whose hash is not the one in env.json."""
    recorded = read_json(folder / ENVIRONMENT_FILE, is_ours=True)
    for name, digest in hash_rows(data).items():
        if recorded.get(name) == digest:
            continue
        file = f"the {name.removesuffix('_sha256')} file"
        if len(data.sources) > 1 and name == "train_sha256":  # one hash per source, in order
            pairs = zip(data.sources, str(recorded.get(name)).split(" "), digest.split(" "), strict=False)
            differing = (source for source, old, new in pairs if old != new)
            file = f"the training file {next(differing, data.sources[0]).path}"
        raise ConfigError(
            f"{folder}: {file} has changed since this run began",
            hint="train anew, with another folder: output=FOLDER",
        )


def _require_same_replay(folder: Path) -> None:
    """Raise `ConfigError` if a run's replay is not the one in env.json."""
    recorded = read_json(folder / ENVIRONMENT_FILE, is_ours=True).get("replay_sha256")
    path = folder / REPLAY_FILE
    if recorded and not (path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == recorded):
        what = "not those that this run began with" if path.is_file() else "gone"
        raise ConfigError(
            f"{path}: the base's answers are {what}",
            hint="put the file back from a copy, or train anew, with another folder: output=FOLDER",
        )


def _flatten(values: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Return nested settings as one dict by full name, such as `train.lr`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{group}{name}.") if isinstance(value, dict) else {f"{group}{name}": value}
    return flat


def as_begun(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with what the run in its folder has settled, unless it names its own."""
    if not (folder / RECIPE_FILE).exists():
        return recipe
    begun = load_recipe(folder / RECIPE_FILE)
    # settled when the run began; today a hub's newest revision or `auto` may mean another
    train = {
        name: getattr(begun.train, name)
        for name in ("micro_batch_size", "gradient_checkpointing", "precision")
        if getattr(recipe.train, name) == "auto"
    }
    # a run of a version that had no replay has no ratio in its recipe
    ratio = (begun.retain.ratio or 0.0) if recipe.retain.ratio is None else recipe.retain.ratio
    settled: dict[str, Any] = {
        "train": recipe.train.model_copy(update=train),
        "revision": begun.revision if recipe.revision is None else recipe.revision,
        "dtype": begun.dtype if recipe.dtype == "auto" else recipe.dtype,
        "retain": recipe.retain.model_copy(update={"ratio": ratio}),
    }
    return recipe.model_copy(update=settled)


def with_full_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths, valid from any working folder."""
    data: dict[str, Any] = {
        name: full_path(path)
        for name in ("train", "validation", "test")
        if isinstance(path := getattr(recipe.data, name), Path)
    }
    if isinstance(recipe.data.train, tuple):
        data["train"] = tuple(
            source.model_copy(update={"path": full_path(source.path)}) for source in recipe.data.train
        )
    retain = recipe.retain
    if retain.prompts:
        retain = retain.model_copy(update={"prompts": full_path(retain.prompts)})
    models = {"model": lasting_name(recipe.model), "base": recipe.base and Path(lasting_name(recipe.base))}
    return recipe.model_copy(update={**models, "data": recipe.data.model_copy(update=data), "retain": retain})
