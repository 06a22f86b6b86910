"""Public functions: train, plan, evaluate, export, verify, checkup, compare, report, card, migrate, doctor.

They write to stderr what the command line writes. `quiet=True` writes nothing; `on_event`, a function of one
event (`glmtune.workflows.events`), gets each event instead.
Importing this module loads no torch: mistakes in paths and rows are errors within a second.
"""

from __future__ import annotations  # help() shows the signatures as written here

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.language import Language
from glmtune.locations import require_here
from glmtune.migration import Migration
from glmtune.recipe.parse import RecipeSource
from glmtune.reports.compare import Comparison
from glmtune.workflows.early import check_training, export_folder, recipe_for, training_recipe
from glmtune.workflows.events import Event, ExportResult, Note, RunResult
from glmtune.workflows.show import OnEvent, attend

if TYPE_CHECKING:
    import torch

    from glmtune.adapters.proof import Check
    from glmtune.recipe import Recipe
    from glmtune.reports.checkup import Checkup
    from glmtune.workflows.findings import Finding
    from glmtune.workflows.outlook import Outlook


def train(
    recipe: RecipeSource | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    on_event: OnEvent | None = None,
    **settings: object,
) -> RunResult:
    """Train by a recipe (a path, a run's folder, a dict or a `Recipe`); return the run's folder and figures.

        train(model="/models/chatglm3-6b", data={"train": "my.json"}, output="runs/mine")
        train("recipes/lora.yaml", train={"lr": 2e-4})
        train({"model": "/models/chatglm3-6b", "data.train": "my.json"})

    `settings` override the recipe's, a group of them as a dict (`data` also as the path of the training
    rows); `glmtune settings` lists them all. With `resume`, continue from the last checkpoint of the recipe's
    `output`. A run that does not fit into the free memory is refused before its weights are read; `force`
    makes that a warning. Plan, first row, progress and warnings go to stderr; `quiet=True` writes nothing,
    `on_event=f` calls f with each event instead. Ctrl-C ends the step, saves a checkpoint and raises
    KeyboardInterrupt. Raises `GlmtuneError`.
    """
    parsed = _recipe_of(recipe, settings)
    rows = check_training(parsed, resume=resume)
    from glmtune.workflows.execute import training

    events = training(parsed, resume=resume, force=force, rows=rows)
    return attend(events, "training", quiet=quiet, on_event=on_event)


def plan(
    recipe: RecipeSource | None = None,
    *,
    probe: bool = False,
    quiet: bool = False,
    on_event: OnEvent | None = None,
    **settings: object,
) -> Outlook:
    """Forecast what `train` of the same arguments takes: memory by part, disk, steps; here and on cards.

        plan(model="/models/chatglm3-6b", data="my.json", quant="int4").here.fits
        plan("recipes/lora.yaml", probe=True).speed.total_s

    No weight is read and nothing is written; with `probe`, the model is loaded and its first steps are timed.
    Notes and warnings go to stderr; `quiet=True` writes nothing, `on_event=f` calls f with each event
    instead. Raises `GlmtuneError`.
    """
    parsed = _recipe_of(recipe, settings)
    rows = check_training(parsed, begins=False)
    from glmtune.workflows.outlook import looking_ahead

    events = looking_ahead(parsed, rows=rows, probe=probe)
    return attend(events, "timing", quiet=quiet, on_event=on_event)


def _recipe_of(recipe: RecipeSource | None, settings: dict[str, object]) -> Recipe:
    """Return the recipe of a training run; `data` may be the path of its rows, as in `evaluate`."""
    if isinstance(settings.get("data"), str | Path):
        settings["data"] = {"train": settings["data"]}
    return training_recipe({} if recipe is None else recipe, settings=settings)


def evaluate(
    recipe: RecipeSource,
    *,
    data: str | Path | None = None,
    output: str | Path | None = None,
    against: str | Path | None = None,
    general: bool = False,
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> RunResult:
    """Answer and score the rows of `data`, else the test or held-out rows of a run or recipe.

        evaluate("runs/mine", data="test.json")
        evaluate({"model": "runs/mine", "data.test": "test.json", "evaluate.max_rows": 100})
        evaluate("runs/mine", general=True).scores["verdict"]

    `recipe` is a model, run or adapter folder, or a recipe: a path to YAML, a dict or a `Recipe`. Its `model`
    is a model, run or adapter folder; the recipe's settings override those of a run. `against`: the folder
    of another evaluation of the same rows, whose scores are compared. With `general`, nothing is scored: the
    result's `scores` are the report of what the model has kept of its base. Notes and progress go to stderr;
    `quiet=True` writes nothing, `on_event=f` calls f with each event instead. Ctrl-C keeps the answers so
    far: the same call continues. Raises `GlmtuneError`.
    """
    if isinstance(recipe, str | Path) and Path(recipe).suffix not in (".yaml", ".yml"):
        recipe = {"model": str(recipe)}
    named = {"data.test": data, "output": output}
    words = [f"{key}={value}" for key, value in named.items() if value is not None]
    parsed = recipe_for(recipe, words, has_base=general)
    if general:
        from glmtune.workflows.general import measuring

        folder, found = attend(measuring(parsed), "measuring", quiet=quiet, on_event=on_event)
        return RunResult(folder, {}, found.facts())
    from glmtune.workflows.evaluating import evaluating

    events = evaluating(parsed, against=Path(against) if against else None)
    return attend(events, "answering", quiet=quiet, on_event=on_event)


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
    strength: float = 1.0,
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> ExportResult:
    """Export a run, adapter or model; `to` is one of `KINDS`, which `glmtune export --help` explains.

    The folder `output`, by default `exports/<name>-<to>`, appears only once the export was opened in a fresh
    process and answered as base + adapter do. `dtype` is the weights' type, by default the base's own. For
    int8 and int4 `data`, `max_rows`, `score_rows` and `device` choose the rows that the loss of quality is
    measured on, and the device; by default the run's held-out rows. `strength`: how much of what was trained
    is exported, as in `load_model`. Notes go to stderr; `quiet=True` writes
    nothing, `on_event=f` calls f with each event instead. Raises `GlmtuneError`.
    """
    require_here(path)
    from glmtune.workflows.exporting import Order, exporting

    rows = Path(data) if data else None
    folder = Path(output) if output else export_folder(path, to, strength)
    order = Order(
        path, to, folder, base, template, dtype, max_shard_size, rows, max_rows, score_rows, device, strength
    )
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
    """Verify that a run, checkpoint or adapter folder does what it did when it was saved; return the checks.

    The arguments are those of `load_model`; `base` names a base that has moved. Each check goes to stderr;
    `quiet=True` writes nothing, `on_event=f` calls f with each event instead. Raises `CheckpointError` for
    the first check that fails, `ConfigError` for an untuned model.
    """
    require_here(path)
    from glmtune.workflows.verifying import proving_trained

    events = proving_trained(path, base=base, template=template, dtype=dtype, quant=quant, device=device)
    return attend(events, "verifying", quiet=quiet, on_event=on_event)


def checkup(
    path: str | Path,
    *,
    base: str | Path | None = None,
    template: str | None = None,
    prompts: int | None = None,
    dtype: str = "auto",
    quant: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> Checkup:
    """Look at anyone's adapter or tuned model beside its base: what it changes, keeps, needs and forgot.

        checkup("my-adapter", base="/models/chatglm3-6b").forgetting["verdict"]

    Both models answer `prompts` general prompts, by default 32. `base`: that of a merged model, or of an
    adapter whose base has moved; the other arguments are those of `load_model`. Progress goes to stderr;
    `quiet=True` writes nothing, `on_event=f` calls f with each event instead. Raises `CheckpointError` for a
    model that changes nothing or does not fit its base, `ConfigError` for one without a base.
    """
    named = {
        "base": base, "template": template, "dtype": dtype, "quant": quant, "device": device,
        "retain.report_prompts": prompts,
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in named.items() if value is not None]
    recipe = recipe_for({"model": str(path)}, words, has_base=True)
    from glmtune.workflows.checkup import checking

    return attend(checking(recipe, Path(path)), "measuring", quiet=quiet, on_event=on_event)


def compare(
    runs: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    at: Sequence[int] = (),
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> Comparison:
    """Compare runs side by side, at the steps `at` or at the last step that all of them have reached.

    Writes picture and figures to `output`, a new folder, if it is given. Warnings of figures that cannot be
    compared go to stderr; `quiet=True` writes nothing, `on_event=f` calls f with each event instead. Raises
    `ConfigError` and `CheckpointError`.
    """
    return attend(_comparing(runs, output, at), "comparing", quiet=quiet, on_event=on_event)


def _comparing(
    runs: Sequence[str | Path], output: str | Path | None, at: Sequence[int]
) -> Generator[Event, None, Comparison]:
    from glmtune.reports.compare import compare_runs

    comparison = compare_runs(runs, output=output, at=at)
    yield from (Note(text, is_warning=True) for text in comparison.warnings)
    return comparison


def report(
    runs: str | Path | Sequence[str | Path],
    *,
    output: str | Path | None = None,
    lang: Language | None = None,
    force: bool = False,
) -> Path:
    """Write one run, or several side by side, as a web page of one file; return its path.

        report("runs/mine")
        report(["runs/lora", "runs/ptuning"], output="lora-or-ptuning.html", lang="zh")

    The default is report.html in the run's folder, which is always written anew, and for several runs in the
    folder that the first one lies in. Any other file that is there is replaced only with `force`. The page
    has both languages; `lang` is the one shown first, by default that of the locale. Raises `ConfigError`,
    `CheckpointError` and `OutputError`.
    """
    from glmtune.reports.html.page import write_report

    named = [runs] if isinstance(runs, str | Path) else runs
    return write_report(named, output=output, language=lang, force=force)


def card(
    run: str | Path,
    *,
    output: str | Path | None = None,
    lang: Language | None = None,
    force: bool = False,
) -> Path:
    """Draw a run as one picture to share: answers before and after, scores, time, memory, versions.

    Returns its path, by default card.png in the run's folder, which is always drawn anew; another file that
    is there is replaced only with `force`. `lang` is by default the locale's. Raises `ConfigError`,
    `CheckpointError` and `OutputError`.
    """
    from glmtune.reports.card import write_card

    return write_card(run, output=output, language=lang, force=force)


def migrate(
    source: str | Path,
    output: str | Path | None = None,
    *,
    base: str | Path | None = None,
    template: str | None = None,
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> list[Migration]:
    """Recognise `source` and convert it to glmtune's files in the new `output`; overwrites and runs nothing.

    A script or configuration (or a folder of them) becomes recipes; a PEFT LoRA folder or a P-Tuning
    checkpoint becomes an adapter folder. `base` is the adapter's model, `template` its chat format if its
    folder does not name one. A report of findings, repairs and losses goes to stderr; `quiet=True` writes
    nothing, `on_event=f` calls f with each event instead. Raises `GlmtuneError`'s children if a conversion
    would change the meaning.
    """
    events = migrating(source, output, base=base, template=template)
    return attend(events, "migrating", quiet=quiet, on_event=on_event)


def migrating(
    source: str | Path,
    output: str | Path | None = None,
    *,
    base: str | Path | None = None,
    template: str | None = None,
) -> Generator[Event, None, list[Migration]]:
    """Migrate as `migrate` does; yield the report line by line."""
    from glmtune.migration import migrate_path

    migrations = migrate_path(source, output, base=base, template=template)
    for migration in migrations:
        yield Note(str(migration.source))
        parts = {
            "found": migration.found,
            "made": [str(migration.made)] if migration.made else [],
            "mended": migration.mended,
            "not carried over": [f"{name}: {why}" for name, why in migration.lost.items()],
            "not needed": [f"{name}: {why}" for name, why in migration.dropped.items()],
            "next": migration.next,
        }
        for name, lines in parts.items():
            yield from (Note(f"  {name + ':':<18}{line}") for line in lines)
        yield from (Note(f"{migration.source}: {text}", is_warning=True) for text in migration.warnings)
    return migrations


def doctor(
    path: str | Path | None = None,
    *,
    template: str | None = None,
    dtype: str = "auto",
    quant: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    on_event: OnEvent | None = None,
) -> list[Finding]:
    """Look at this machine, try glmtune on it with glm-tiny, and on the model at `path`; return the findings.

    `Finding.has_failed` marks what did not work. The arguments are those of `load_model`. The report goes to
    stderr, to be pasted into an issue; `quiet=True` writes nothing, `on_event=f` calls f with each event
    instead. Raises `CheckpointError` for a path to nothing, `ConfigError` for an adapter or a run.
    """
    if path is not None:
        require_here(path)
    from glmtune.workflows.examining import examining

    report = examining(path, template=template, dtype=dtype, quant=quant, device=device)
    return attend(report, "doctor", quiet=quiet, on_event=on_event)
