"""A training run from recipe to checkpoints: read top to bottom."""

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from glmtune.adapters.proof import (
    check_base,
    check_recorded,
    proof_line,
    require_files,
)
from glmtune.adapters.store import read_card, require_saved, restore_trained
from glmtune.data.batches import Steps, collate
from glmtune.load import choose_type, open_place, open_tokenizer
from glmtune.log import without_false_alarms
from glmtune.methods import begin_pruning, count_parameters, steps_warning, trainable_line
from glmtune.objectives import build_objective
from glmtune.places import resolve
from glmtune.recipe import Kept, Recipe
from glmtune.recipe.settings import DEFAULT_EPOCHS
from glmtune.runs import (
    RESULT_FILE,
    SAMPLES_FILE,
    last_checkpoint,
    read_json_lines,
    remove_folder,
    write_json,
)
from glmtune.training.guard import Guard
from glmtune.training.optim import build_optimizer, build_schedule, find_optimizer
from glmtune.training.processes import Processes
from glmtune.training.state import (
    STATE_FILE,
    as_state,
    read_state,
    restore_state,
)
from glmtune.workflows.cards import look_at_base
from glmtune.workflows.early import (
    as_begun,
    data_hashes,
    require_resumable,
    require_startable,
    run_folder,
)
from glmtune.workflows.events import Event, Note, RunResult
from glmtune.workflows.outcome import worse_warning
from glmtune.workflows.parent import is_pruned, text_warnings, tuned, with_parent
from glmtune.workflows.plan import (
    choose_precision,
    fp16_line,
    is_rate_high,
    lower_rate,
    model_facts,
    plan_line,
    plan_warning,
    rate_line,
    require_able,
    start_processes,
    with_default_rate,
)
from glmtune.workflows.record import RunRecord
from glmtune.workflows.rows import Read, first_row, training_rows
from glmtune.workflows.running import Run, Standing, train_through, validation_parts


def training(
    recipe: Recipe, *, resume: bool = False, read: Read | None = None
) -> Generator[Event, None, RunResult]:
    """Train; yield what happens. With `resume`, go on from the run folder's last checkpoint.

    `read`: the rows, where `check_training` has read them already.
    """
    if resume:
        recipe = as_begun(recipe, run_folder(recipe))
    recipe = with_default_rate(with_parent(recipe))
    folder = run_folder(recipe)
    (require_resumable if resume else require_startable)(recipe, folder)
    run = yield from _prepare(recipe, folder, read)
    if resume:
        yield _resume(run)
    if run.is_main:
        pinned = run.recipe
        if not run.place.adapter:
            pinned = pinned.model_copy(update={"revision": run.place.revision})
        facts = {"model": model_facts(run.place), **data_hashes(recipe), **_sizes(run.model)}
        run.record.begin(pinned, facts, is_new=not resume)
    try:
        yield from train_through(run)
    except KeyboardInterrupt:
        if run.is_main and run.standing.step == 0 and not resume:
            remove_folder(folder)  # nothing is lost, and the same can be begun again
        raise
    run.processes.wait()
    result = _result(run)
    yield from _closing(run, result.metrics)
    if worse := worse_warning(recipe, result.metrics):
        yield Note(worse, is_warning=True)
    return result


def _prepare(recipe: Recipe, folder: Path, read: Read | None) -> Generator[Event, None, Run]:
    """Everything before the first step; nothing is written yet, so bad input leaves no trace."""
    place = resolve(recipe.model, base=recipe.base, revision=recipe.revision)
    require_able(recipe, place)
    find_optimizer(recipe.train)  # so that a missing package is told before the model is loaded
    processes = start_processes(recipe.device)
    tokenizer = open_tokenizer(place, template=recipe.template)
    rows = training_rows(tokenizer, recipe.data, read)
    yield from rows.notes
    yield from text_warnings(recipe, place)
    steps = Steps(
        rows.train.rows,
        batch_size=recipe.train.batch_size,
        micro_batch_size=recipe.train.micro_batch_size,
        seed=recipe.train.seed,
        rank=processes.rank,
        num_processes=processes.number,
    )
    num_steps = recipe.train.steps or math.ceil((recipe.train.epochs or DEFAULT_EPOCHS) * steps.per_epoch)
    if not is_pruned(place) and (early := steps_warning(recipe.method, num_steps)):
        yield Note(early, is_warning=True)
    held = processes.firsts(choose_type(place, recipe.dtype, processes.device, recipe.quant))
    recipe = recipe.model_copy(update={"dtype": held.name})
    precision = choose_precision(recipe, held.dtype, processes.device)
    # all weights trained: read as fp32, the type they are trained in, not rounded on the way
    opened = replace(held, dtype=torch.float32) if recipe.method.kept is Kept.MODEL else held
    base = open_place(
        place.under,
        template=recipe.template or place.template,
        dtype=opened,
        device=str(processes.device),
        quant=recipe.quant,
    )
    untrained = look_at_base(base, place, tokenizer)
    torch.manual_seed(recipe.train.seed)
    model = yield from tuned(base, place, recipe.method)
    if recipe.train.gradient_checkpointing:
        with without_false_alarms():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    yield Note(trainable_line(model))
    yield first_row(tokenizer, rows.train.rows)
    processes = Processes(processes.device, precision=precision)
    torch.manual_seed(recipe.train.seed + processes.rank)  # dropout differs between processes
    optimizer = build_optimizer(model, recipe.train)
    schedule = build_schedule(optimizer, recipe.train, num_steps)
    objective = build_objective(model, recipe.objective)
    yield Note(plan_line(steps, num_steps, processes.device, precision))
    yield Note(rate_line(recipe))
    if fp16 := fp16_line(precision, processes.device):
        yield Note(fp16)
    if wipes := plan_warning(recipe, steps, num_steps):
        yield Note(wipes, is_warning=True)
    if recipe.train.warmup_steps >= num_steps:
        warmup = recipe.train.warmup_steps
        text = f"train.warmup_steps: {warmup} of {num_steps} steps, so the peak rate is never reached"
        yield Note(text, is_warning=True)
    return Run(
        recipe=recipe,
        place=place,
        tokenizer=tokenizer,
        rows=rows,
        processes=processes,
        base=untrained,
        model=model,
        objective=objective,
        module=processes.wrap(objective),
        optimizer=processes.prepare(optimizer),
        schedule=schedule,
        steps=steps,
        num_steps=num_steps,
        validation=[
            collate(part, tokenizer.pad_token_id)
            for part in validation_parts(rows.validation.rows, recipe, processes)
        ],
        guard=Guard(
            objective,
            processes,
            lower_lr=lower_rate(recipe),
            is_rate_high=is_rate_high(recipe),
            rows_of=steps.micro_batches,
        ),
        record=RunRecord(folder, tensorboard=recipe.train.tensorboard),
        pruning=begin_pruning(model, recipe.method, num_steps),
    )


def _resume(run: Run) -> Note:
    """Weights, optimizer, schedule, random numbers and standing of the last checkpoint; both links."""
    last = last_checkpoint(run.record.folder)
    assert last is not None
    card = read_card(last)
    if card:
        require_files(last, card)
    if card and card.fingerprint:
        check_base(last, card, run.place.folder)
    if run.pruning is None:
        restore_trained(run.model, last)
    processes = run.processes.number
    state = read_state(last, step=card.step if card else None, num_processes=processes)
    with as_state(last / STATE_FILE):
        restore_state(state, run.optimizer, run.schedule, run.processes)
        if run.pruning:  # its weights too: the adapter's files are without what is pruned
            run.pruning.load_state_dict(state["pruning"])
        run.standing = Standing(**state["standing"])
    if run.pruning:
        require_saved(run.model, last)
    if run.is_main:
        keep = run.recipe.train.keep_checkpoints
        run.record.go_back(run.standing.step, keep=keep, best_step=run.standing.best_step)
    left = f"resumed from {last.name}: {run.num_steps - run.standing.step} of {run.num_steps} steps to go"
    before, now = card.dtype if card else "", run.base.dtype
    changed = f"the base was in {before} so far, from here it is in {now}" if before not in ("", now) else ""
    return Note("; ".join(filter(None, [left, changed, proof_line(check_recorded(card))])))


def _sizes(model: Any) -> dict[str, int]:
    """How much is trained of how much, as env.json keeps it."""
    trained, total = count_parameters(model)
    return {"trainable_parameters": trained, "all_parameters": total}


def _closing(run: Run, metrics: Mapping[str, Any]) -> Iterator[Note]:
    """How the loss went, and where to look."""
    if "eval_loss" in metrics:
        yield Note(
            f"evaluation loss: {metrics['first_eval_loss']:.4f} before, {metrics['eval_loss']:.4f} after; "
            f"best {metrics['best_eval_loss']:.4f} at step {metrics['best_step']}"
        )
    folder = run.record.folder
    samples = f"; sample answers: {folder / SAMPLES_FILE}" if run.recipe.samples.prompts else ""
    yield Note(f"loss curve: {folder / 'loss.png'}{samples}")


def _result(run: Run) -> RunResult:
    lines = read_json_lines(run.record.metrics_path) if run.is_main else []
    trained = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "eval_loss" in line]
    metrics: dict[str, Any] = {"steps": run.standing.step, "best_step": run.standing.best_step}
    if trained and evaluated:
        metrics |= {
            "first_loss": trained[0]["loss"],
            "loss": trained[-1]["loss"],
            "first_eval_loss": evaluated[0]["eval_loss"],
            "eval_loss": evaluated[-1]["eval_loss"],
            "best_eval_loss": run.standing.best_loss,
            "train_s": sum(line.get("step_s") or 0.0 for line in trained),
            "peak_memory_gib": trained[-1].get("peak_memory_gib"),
        }
        write_json(run.record.folder / RESULT_FILE, metrics)
    return RunResult(run.record.folder, metrics, {})
