"""`glmtune evaluate --general`: what any tuned model or adapter, of any tool, has kept of its base."""

from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

from glmtune.data.row import TrainingRow
from glmtune.data.tables import is_hub_name
from glmtune.errors import ConfigError
from glmtune.evaluation.forgetting import Forgetting
from glmtune.general import held_out_prompts
from glmtune.load import choose_type, load_location, tokenizer_of
from glmtune.locations import Location, find_base, resolve
from glmtune.log import is_main_process, quiet
from glmtune.models.device import resolve_device
from glmtune.recipe import Recipe, load_recipe
from glmtune.run_files import (
    FORGETTING_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    make_folder,
    read_json_lines,
    step_of,
    write_json,
)
from glmtune.templates import Taught
from glmtune.tokenizers.protocol import Tokenizer
from glmtune.training.processes import Processes
from glmtune.workflows.evaluating import evaluation_folder
from glmtune.workflows.events import Event, Note, Working
from glmtune.workflows.report_forgetting import advice
from glmtune.workflows.reporting import renew_report
from glmtune.workflows.retention import measure, record_reference
from glmtune.workflows.rows import training_rows


def measuring(recipe: Recipe) -> Generator[Event, None, tuple[Path, Forgetting]]:
    """Measure what a recipe's model has kept of its base; write forgetting.json, return folder and report.

    The base is that of the adapter or of the card, or `base`. Of a run, its own rows are measured too.
    Raises `ConfigError` for a whole model without a base to compare it with, and for an output that is a run.
    """
    location = resolve(recipe.model, base=recipe.base, revision=recipe.revision, has_base=True)
    folder = evaluation_folder(recipe, location, "general")
    if (folder / RECIPE_FILE).exists():
        raise ConfigError(
            f"output: {folder} is the folder of a run, whose own {FORGETTING_FILE} would be replaced",
            hint="name another folder, or leave output out: the result then lies in the run's `evaluations`",
        )
    found = yield from compare_with_base(location, recipe)
    if is_main_process():
        make_folder(folder)
        write_json(folder / FORGETTING_FILE, found.facts())
        if recipe.output is None and location.run:
            yield renew_report(location.run)
    return folder, found


def advice_on_run(recipe: Recipe, found: Forgetting) -> Note | None:
    """Return what to change in the run that was measured, as its own end says; None of what is no run."""
    run = resolve(recipe.model, base=recipe.base, revision=recipe.revision, has_base=True).run
    if run is None:
        return None
    trained = load_recipe(run / RECIPE_FILE)
    epochs = [line["epoch"] for line in read_json_lines(run / METRICS_FILE) if "epoch" in line]
    lr = trained.train.lr or trained.method.default_lr
    return advice(found, trained, lr=lr, epochs=epochs[-1] if epochs else 0.0)


def compare_with_base(location: Location, recipe: Recipe) -> Generator[Event, None, Forgetting]:
    """Compare a tuned model with its base; one of them is in memory at a time. Processes share the work."""
    base = find_base(location, recipe.base, wanted_by="general")
    tokenizer = tokenizer_of(location, template=recipe.template)
    dtype = choose_type(location, recipe.dtype, recipe.device, recipe.quant)
    processes = Processes(
        resolve_device(recipe.device), precision=dtype.computing_name, engine=recipe.distributed
    )
    train, task = yield from _rows_of_run(location, recipe, tokenizer)
    quant = recipe.quant or location.quant  # also of the base, that both compute alike
    device = processes.own_card or recipe.device
    open_model = partial(load_location, dtype=dtype, device=device, quant=quant)
    yield Note(f"the base, asked first: {base.name}")
    with quiet():  # the tuned model's line tells the same
        untuned = open_model(base, template=tokenizer.template).eval()
    yield Working("asking the base")
    reference = record_reference(
        untuned,
        tokenizer,
        held_out_prompts()[: recipe.retain.report_prompts],
        folder=base.folder,
        taught=Taught.of(recipe.data),
        settings=recipe.retain,
        processes=processes,
        train=train,
        task=task,
        words=recipe.data.words.values(),
    )
    del untuned  # one of the two is in memory
    tuned = open_model(
        location, template=recipe.template, strength=recipe.evaluate.strength, base=base
    ).eval()
    yield Working("measuring what is forgotten")
    return measure(tuned, tokenizer, reference, step=step_of(location.trained.resolve()))


def _rows_of_run(
    location: Location, recipe: Recipe, tokenizer: Tokenizer
) -> Generator[Note, None, tuple[Sequence[TrainingRow], Sequence[TrainingRow]]]:
    """Return a run's training rows, and some that were held out of them; none of what is no run."""
    if not location.run or recipe.data.train is None:
        return (), ()
    paths = [source.path for source in recipe.data.sources]
    if gone := next((path for path in paths if not (is_hub_name(path) or path.exists())), None):
        yield Note(f"{gone}: the run's rows are not there, so general prompts alone are measured on")
        return (), ()
    encoded = training_rows(tokenizer, recipe.data)
    return encoded.train.rows, encoded.validation.rows[: recipe.retain.report_prompts]
