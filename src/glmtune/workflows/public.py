"""The public functions: a workflow each, its events shown.

They say on stderr what the command line says. `quiet=True` says nothing; `on_event`, a function of one event
(`glmtune.workflows.events`), gets each event in place of that.
Importing this loads no torch: what is wrong with a path or a row is told first.
"""

from __future__ import annotations  # signatures are shown as they stand here

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.locations import require_here
from glmtune.migration import Migration
from glmtune.recipe.parse import RecipeSource
from glmtune.report.compare import Comparison
from glmtune.workflows.early import check_training, export_folder, recipe_for, training_recipe
from glmtune.workflows.events import Event, ExportResult, Note, RunResult
from glmtune.workflows.show import OnEvent, attend

if TYPE_CHECKING:
    import torch

    from glmtune.adapters.proof import Check


def train(
    recipe: RecipeSource | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> RunResult:
    """Run a recipe (a path, a run's folder, a dict or a `Recipe`); return where its files are and figures.

        train(model="/models/chatglm3-6b", data={"train": "my.json"}, output="runs/mine")
        train("recipes/lora.yaml", train={"lr": 2e-4})
        train({"model": "/models/chatglm3-6b", "data.train": "my.json"})

    `settings` are those of a recipe, a group of them as a dict (`data` also as the path of the training
    rows), and come on top; `glmtune settings` lists all.
    With `resume`, go on from the last checkpoint of the recipe's `output`. Plan, first row, progress and
    warnings go to stderr; `quiet=True` says nothing, `on_event=f` calls f with each event instead.
    Ctrl-C ends the step, saves a checkpoint and raises KeyboardInterrupt. Raises `GlmtuneError`.
    """
    if isinstance(settings.get("data"), str | Path):  # as `evaluate` takes it
        settings["data"] = {"train": settings["data"]}
    parsed = training_recipe({} if recipe is None else recipe, settings=settings)
    read = check_training(parsed, resume=resume)
    from glmtune.workflows.execute import training

    return attend(training(parsed, resume=resume, read=read), "training", quiet=quiet, on_event=on_event)


def evaluate(
    recipe: RecipeSource,
    *,
    data: str | Path | None = None,
    output: str | Path | None = None,
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> RunResult:
    """Answer and score the rows of `data`, or else the held-out or test rows of a run or recipe.

        evaluate("runs/mine", data="test.json")
        evaluate({"model": "runs/mine", "data.test": "test.json", "evaluate.max_rows": 100})

    `recipe` is a model, run or adapter folder, or a recipe: a path to YAML, a dict or a `Recipe`.
    Its `model` is a model, run or adapter folder; a run brings its own settings, the recipe's come on top.
    Notes and progress go to stderr; `quiet=True` says nothing, `on_event=f` calls f with each event instead.
    Ctrl-C keeps the answers so far: the same call goes on. Raises `GlmtuneError`.
    """
    if isinstance(recipe, str | Path) and Path(recipe).suffix not in (".yaml", ".yml"):
        recipe = {"model": str(recipe)}
    named = {"data.test": data, "output": output}
    parsed = recipe_for(recipe, [f"{key}={value}" for key, value in named.items() if value is not None])
    from glmtune.workflows.evaluating import evaluating

    return attend(evaluating(parsed), "answering", quiet=quiet, on_event=on_event)


def export(
    path: str | Path,
    *,
    to: str,
    output: str | Path | None = None,
    base: str | Path | None = None,
    template: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "2GB",
    data: str | Path | None = None,
    max_rows: int = 200,
    score_rows: int = 0,
    device: str = "auto",
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> ExportResult:
    """Write a run, adapter or model as `to`, one of `KINDS`, says; see `glmtune export --help`.

    The folder `output`, by default `exports/<name>-<to>`, appears only when the export was opened in a fresh
    process and answered as base + adapter do. `dtype` is the weights' type, by default the base's own.
    `data`, `max_rows`, `score_rows` and `device`: what int8's and int4's loss of quality is measured on, by
    default the run's held-out rows.
    Notes go to stderr; `quiet=True` says nothing, `on_event=f` calls f with each event instead.
    Raises `GlmtuneError`.
    """
    require_here(path)
    from glmtune.workflows.exporting import Order, exporting

    rows = Path(data) if data else None
    folder = Path(output) if output else export_folder(path, to)
    order = Order(path, to, folder, base, template, dtype, max_shard_size, rows, max_rows, score_rows, device)
    return attend(exporting(order), "exporting", quiet=quiet, on_event=on_event)


def verify(
    path: str | Path,
    *,
    base: str | Path | None = None,
    template: str | None = None,
    dtype: str | torch.dtype = "auto",
    quant: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> list[Check]:
    """Prove that a run, checkpoint or adapter folder does what it did when it was saved; what was proven.

    The arguments open it as `load_model`'s do; `base` is its base where that has moved. What is proven goes
    to stderr; `quiet=True` says nothing, `on_event=f` calls f with each event instead. Raises
    `CheckpointError` for the first thing that is not so, `ConfigError` for a model that was not trained here.
    """
    require_here(path)
    from glmtune.workflows.verifying import proving_trained

    events = proving_trained(path, base=base, template=template, dtype=dtype, quant=quant, device=device)
    return attend(events, "verifying", quiet=quiet, on_event=on_event)


def compare(
    runs: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    at: Sequence[int] = (),
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> Comparison:
    """Put runs side by side, at the steps `at` or at the last that all have made.

    With `output`, a new folder, the picture and the figures are written there. Warnings of what cannot be
    compared go to stderr; `quiet=True` says nothing, `on_event=f` calls f with each event instead. Raises
    `ConfigError` and `CheckpointError`.
    """
    return attend(_comparing(runs, output, at), "comparing", quiet=quiet, on_event=on_event)


def _comparing(
    runs: Sequence[str | Path], output: str | Path | None, at: Sequence[int]
) -> Generator[Event, None, Comparison]:
    from glmtune.report.compare import compare_runs

    comparison = compare_runs(runs, output=output, at=at)
    yield from (Note(text, is_warning=True) for text in comparison.warnings)
    return comparison


def migrate(
    source: str | Path,
    output: str | Path | None = None,
    *,
    base: str | Path | None = None,
    template: str | None = None,
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> list[Migration]:
    """Tell what `source` is and write it as ours to the new `output`; nothing is overwritten or run.

    A script or configuration (or a folder of them) gives recipes, a PEFT LoRA folder or a P-Tuning checkpoint
    one adapter folder; `base` is the model it goes on, `template` its chat format where its folder does not
    tell. What was found, mended and lost goes to stderr; `quiet=True` says nothing, `on_event=f` calls f with
    each event instead. Raises GlmtuneError's children for what cannot be carried over as it is.
    """
    events = migrating(source, output, base=base, template=template)
    return attend(events, "migrating", quiet=quiet, on_event=on_event)


def migrating(
    source: str | Path, output: str | Path | None = None, **options: Any
) -> Generator[Event, None, list[Migration]]:
    """As `migrate`; yield its report line by line."""
    from glmtune.migration import migrate_path

    done = migrate_path(source, output, **options)
    for migration in done:
        yield from (Note(line) for line in _migration_lines(migration))
        yield from (Note(f"{migration.source}: {text}", is_warning=True) for text in migration.warnings)
    return done


def _migration_lines(migration: Migration) -> list[str]:
    parts = {
        "found": migration.found,
        "made": [str(migration.made)] if migration.made else [],
        "mended": migration.mended,
        "not carried over": [f"{name}: {why}" for name, why in migration.lost.items()],
        "not needed": [f"{name}: {why}" for name, why in migration.dropped.items()],
        "next": migration.next,
    }
    lines = [f"  {name + ':':<18}{line}" for name, lines in parts.items() for line in lines]
    return [str(migration.source), *lines]
