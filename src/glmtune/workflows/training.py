"""A training run from recipe to checkpoints: read top to bottom."""

import math
import shlex
import signal
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from glmtune.data.batches import Steps, collate
from glmtune.data.encode import Row
from glmtune.files import copy_small_files
from glmtune.generate import Sampling, answer
from glmtune.load import check_outline, choose_type, open_place, open_tokenizer
from glmtune.log import without_false_alarms
from glmtune.methods import begin_pruning, count_parameters, trainable_line
from glmtune.methods.adalora import Pruning
from glmtune.methods.adapter import read_card, require_saved, restore_trained, save_trained
from glmtune.methods.proof import (
    check_base,
    check_recorded,
    proof_line,
    recorded_difference,
    require_files,
)
from glmtune.objectives import Batch, Sft
from glmtune.places import Place, resolve
from glmtune.recipe import Recipe
from glmtune.recipe.settings import DEFAULT_EPOCHS
from glmtune.runs import (
    RESULT_FILE,
    SAMPLES_FILE,
    last_checkpoint,
    make_folder,
    read_json_lines,
    remove_folder,
    replacing,
    write_json,
)
from glmtune.tokenizers import encode_messages
from glmtune.training.guard import Guard
from glmtune.training.loop import fit, mean_loss
from glmtune.training.optim import build_optimizer, build_schedule, find_optimizer
from glmtune.training.progress import Progress, run_time
from glmtune.training.state import (
    STATE_FILE,
    as_state,
    collect_state,
    read_state,
    restore_state,
    write_state,
)
from glmtune.training.stopping import Interrupted, StopRequest
from glmtune.workflows.cards import Untrained, look_at_base, write_card
from glmtune.workflows.early import (
    as_begun,
    data_hashes,
    require_resumable,
    require_startable,
    run_folder,
)
from glmtune.workflows.events import Evaluated, Event, Note, RunResult, Saved, Stepped
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
    pruning_warning,
    rate_line,
    same_for_all,
    start_processes,
    with_default_rate,
)
from glmtune.workflows.record import RunRecord
from glmtune.workflows.rows import Read, Rows, first_row, training_rows

SHORT_STEPS = 50
"""A run of so many steps at most says each of them, unless `train.log_every` says otherwise."""


@dataclass
class _Standing:
    """How the run stands; saved with every checkpoint."""

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0


@dataclass
class _Run:
    """The parts of a run, put together once."""

    recipe: Recipe
    place: Place
    tokenizer: Any
    rows: Rows
    accelerator: Accelerator
    base: Untrained
    model: Any
    objective: Sft
    module: Any
    """The objective, with DDP around it where there are several processes."""
    optimizer: Any
    schedule: Any
    steps: Steps
    num_steps: int
    validation: list[Batch]
    guard: Guard
    record: RunRecord
    pruning: Pruning | None
    """What AdaLoRA does within each step."""
    standing: _Standing = field(default_factory=_Standing)
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)


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
        yield from _train(run)
    except KeyboardInterrupt:
        if run.is_main and run.standing.step == 0 and not resume:
            remove_folder(folder)  # nothing is lost, and the same can be begun again
        raise
    run.accelerator.wait_for_everyone()
    result = _result(run)
    yield from _closing(run, result.metrics)
    if worse := worse_warning(recipe, result.metrics):
        yield Note(worse, is_warning=True)
    return result


def _prepare(recipe: Recipe, folder: Path, read: Read | None) -> Generator[Event, None, _Run]:
    """Everything before the first step; nothing is written yet, so bad input leaves no trace."""
    place = resolve(recipe.model, base=recipe.base, revision=recipe.revision)
    find_optimizer(recipe.train)  # so that a missing package is told before the model is loaded
    state = start_processes(recipe.device)
    tokenizer = open_tokenizer(place, template=recipe.template)
    rows = training_rows(tokenizer, recipe.data, read)
    yield from rows.notes
    yield from text_warnings(recipe, place)
    steps = Steps(
        rows.train.rows,
        batch_size=recipe.train.batch_size,
        micro_batch_size=recipe.train.micro_batch_size,
        seed=recipe.train.seed,
        rank=state.process_index,
        num_processes=state.num_processes,
    )
    num_steps = recipe.train.steps or math.ceil((recipe.train.epochs or DEFAULT_EPOCHS) * steps.per_epoch)
    if not is_pruned(place) and (early := pruning_warning(recipe.method, num_steps)):
        yield Note(early, is_warning=True)
    held = same_for_all(choose_type(place, recipe.dtype, state.device, recipe.quant))
    recipe = recipe.model_copy(update={"dtype": held.name})
    precision = choose_precision(recipe, held.dtype, state.device)
    # all weights trained: read as fp32, the type they are trained in, not rounded on the way
    opened = replace(held, dtype=torch.float32) if recipe.method.name == "full" else held
    base = open_place(
        place.under,
        template=recipe.template or place.template,
        dtype=opened,
        device=str(state.device),
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
    AcceleratorState._reset_state()  # an earlier run of this program may have had another precision
    accelerator = Accelerator(mixed_precision=precision, cpu=state.device.type == "cpu")
    torch.manual_seed(recipe.train.seed + accelerator.process_index)  # dropout differs between processes
    optimizer = build_optimizer(model, recipe.train)
    schedule = build_schedule(optimizer, recipe.train, num_steps)
    objective = Sft(model)
    several = accelerator.num_processes > 1
    yield Note(plan_line(steps, num_steps, accelerator.device, precision))
    yield Note(rate_line(recipe))
    if fp16 := fp16_line(precision, accelerator.device):
        yield Note(fp16)
    if wipes := plan_warning(recipe, steps, num_steps):
        yield Note(wipes, is_warning=True)
    if recipe.train.warmup_steps >= num_steps:
        warmup = recipe.train.warmup_steps
        text = f"train.warmup_steps: {warmup} of {num_steps} steps, so the peak rate is never reached"
        yield Note(text, is_warning=True)
    return _Run(
        recipe=recipe,
        place=place,
        tokenizer=tokenizer,
        rows=rows,
        accelerator=accelerator,
        base=untrained,
        model=model,
        objective=objective,
        module=accelerator.prepare_model(objective) if several else objective,
        optimizer=accelerator.prepare_optimizer(optimizer),
        schedule=schedule,
        steps=steps,
        num_steps=num_steps,
        validation=[
            collate(part, tokenizer.pad_token_id)
            for part in _validation_parts(rows.validation.rows, recipe, accelerator)
        ],
        guard=Guard(
            objective,
            accelerator,
            lower_lr=lower_rate(recipe),
            is_rate_high=is_rate_high(recipe),
            rows_of=steps.micro_batches,
        ),
        record=RunRecord(folder, tensorboard=recipe.train.tensorboard),
        pruning=begin_pruning(model, recipe.method, num_steps),
    )


def _train(run: _Run) -> Iterator[Event]:
    """The loop with what happens around it."""
    start = time.perf_counter()
    if run.standing.step == 0:
        _record_ranks(run)
        yield from _evaluate(run)
    if _is_out_of_patience(run):
        yield Note("this run had stopped early; there is nothing to go on with")
        return
    with run.stop.deferred():
        yield from _steps(run)
    if run.pruning:
        yield Note(run.pruning.line())
    yield Note(f"train run time: {run_time(time.perf_counter() - start)}")


def _steps(run: _Run) -> Iterator[Event]:
    """Each step, evaluations and checkpoints between them. Raises `Interrupted` after the step is saved."""
    settings, standing = run.recipe.train, run.standing
    eval_every = settings.eval_every or math.ceil(run.num_steps / 10)
    save_every = settings.save_every or eval_every
    log_every = settings.log_every or (1 if run.num_steps <= SHORT_STEPS else 10)
    progress = Progress(steps=run.num_steps, steps_per_epoch=run.steps.per_epoch)
    logs = fit(
        run.objective,
        run.module,
        _micro_batches(run),
        run.optimizer,
        run.schedule,
        run.accelerator,
        max_grad_norm=settings.max_grad_norm,
        guard=run.guard,
        part=run.pruning,
    )
    for log in logs:
        standing.step = log.step
        is_last = log.step == run.num_steps
        progress.add(log)
        if run.is_main:
            run.record.add({**asdict(log), "epoch": log.step / run.steps.per_epoch})
        _record_ranks(run)
        is_due = log.step % log_every == 0 or is_last
        yield Stepped(log, run.num_steps, progress.line() if is_due else None)
        is_evaluated = log.step % eval_every == 0 or is_last
        is_best = (yield from _evaluate(run)) if is_evaluated else False
        is_stopping, is_interrupted = _is_out_of_patience(run), _is_interrupted(run)
        if is_best or is_stopping or is_interrupted or is_last or log.step % save_every == 0:
            if not is_evaluated:  # weights that a step has just ruined are no checkpoint: look at one batch
                _evaluation_loss(run, run.validation[:1])
            yield _save(run, is_best=is_best)
        if is_stopping and not is_last:
            yield Note(f"stopped early: no better evaluation loss in {settings.patience} evaluations")
            return
        if is_interrupted and not is_last:
            raise Interrupted(
                f"interrupted; all {log.step} of {run.num_steps} steps so far are saved; go on with: "
                f"glmtune train {shlex.quote(str(run.record.folder))} --resume",
                number=run.stop.number or signal.SIGINT,
            )


def _is_interrupted(run: _Run) -> bool:
    """Whether any of the processes has been asked to end: all stop at the same step."""
    asked = torch.tensor(float(run.stop.number > 0), device=run.accelerator.device)
    return bool(run.accelerator.reduce(asked, "sum"))


def _record_ranks(run: _Run) -> None:
    """A line of ranks.jsonl at the start, and whenever a rank has changed."""
    if run.is_main and run.pruning and (run.standing.step == 0 or run.pruning.has_changed):
        run.record.add_ranks(run.standing.step, run.pruning.ranks)


def _is_out_of_patience(run: _Run) -> bool:
    patience = run.recipe.train.patience
    return patience is not None and run.standing.evaluations_since_best >= patience


def _evaluate(run: _Run) -> Generator[Event, None, bool]:
    """Evaluation loss, sample answers, picture. Returns whether this is the best so far."""
    standing = run.standing
    loss = _evaluation_loss(run, run.validation)
    before = standing.best_loss
    # the best is to have the ranks that were asked for, so patience begins when they have settled
    is_settled = run.pruning is None or run.pruning.has_settled
    counts = standing.step > 0 and is_settled
    is_best = counts and (before is None or loss < before)
    if is_best:
        standing.best_loss, standing.best_step, standing.evaluations_since_best = loss, standing.step, 0
    elif counts:
        standing.evaluations_since_best += 1
    if run.is_main:
        early = {} if is_settled else {"is_settled": False}
        run.record.add({"step": standing.step, "eval_loss": loss, **early})
        run.record.add_samples(standing.step, _samples(run))
        run.record.draw(standing.step)
    run.accelerator.wait_for_everyone()
    yield Evaluated(standing.step, loss, before, is_best)
    return is_best


def _evaluation_loss(run: _Run, batches: list[Batch]) -> float:
    """Mean loss over the first validation batches. Raises `TrainingError` if it is not finite."""
    loss = mean_loss(run.objective, batches, run.accelerator)
    rows = run.rows.validation.rows
    guard = replace(run.guard, rows_of=lambda _: _validation_parts(rows, run.recipe, run.accelerator))
    guard.check_evaluation(run.standing.step, loss, batches=batches)
    return loss


def _samples(run: _Run) -> list[tuple[str, str]]:
    """The fixed prompts and the model's most likely answers."""
    settings = run.recipe.samples
    if not settings.prompts:
        return []
    sampling = Sampling(do_sample=False, max_new_tokens=settings.max_new_tokens)
    data = run.recipe.data
    system = [{"role": "system", "content": data.system}] if data.system else []
    asked = [
        encode_messages(
            run.tokenizer, [*system, {"role": "user", "content": prompt}], source_prefix=data.source_prefix
        )
        for prompt in settings.prompts
    ]
    answers = answer(run.model, run.tokenizer, asked, sampling)
    return list(zip(settings.prompts, answers, strict=True))


def _save(run: _Run, *, is_best: bool) -> Saved:
    """A checkpoint: weights, card, and all that an exact continuation needs."""
    state = collect_state(run.optimizer, run.schedule, run.accelerator)
    state["standing"] = asdict(run.standing)
    if run.pruning:
        state["pruning"] = run.pruning.state_dict()
    path = run.record.checkpoint_path(run.standing.step)
    card = write_card(run.recipe, run.place, run.base, run.tokenizer, run.model, step=run.standing.step)
    if run.is_main:
        make_folder(path.parent)
        with replacing(path) as partial:
            partial.mkdir()
            if run.recipe.method.name == "full":
                copy_small_files(run.place.base, partial)
            write_state(state, partial)
            save_trained(run.model, partial, card)
            if not last_checkpoint(run.record.folder):  # a run's first: can it be opened at all?
                is_whole = run.recipe.method.name == "full"
                check_outline(resolve(partial, base=None if is_whole else run.place.base))
        run.record.link_checkpoint(run.standing.step, best_step=run.standing.best_step)
        run.record.prune(run.recipe.train.keep_checkpoints, best_step=run.standing.best_step)
    run.accelerator.wait_for_everyone()
    assert card.probe is not None
    return Saved(path, is_best, recorded_difference(card.probe))


def _resume(run: _Run) -> Note:
    """Weights, optimizer, schedule, random numbers and standing of the last checkpoint; both links."""
    last = last_checkpoint(run.record.folder)
    assert last is not None
    card = read_card(last)
    if card:
        require_files(last, card)
    if card and card.fingerprint:
        check_base(last, card, run.place.base)
    if run.pruning is None:
        restore_trained(run.model, last)
    processes = run.accelerator.num_processes
    state = read_state(last, step=card.step if card else None, num_processes=processes)
    with as_state(last / STATE_FILE):
        restore_state(state, run.optimizer, run.schedule, run.accelerator)
        if run.pruning:  # its weights too: the adapter's files are without what is pruned
            run.pruning.load_state_dict(state["pruning"])
        run.standing = _Standing(**state["standing"])
    if run.pruning:
        require_saved(run.model, last)
    if run.is_main:
        keep = run.recipe.train.keep_checkpoints
        run.record.go_back(run.standing.step, keep=keep, best_step=run.standing.best_step)
    left = f"resumed from {last.name}: {run.num_steps - run.standing.step} of {run.num_steps} steps to go"
    before, now = card.dtype if card else "", run.base.dtype
    changed = f"the base was in {before} so far, from here it is in {now}" if before not in ("", now) else ""
    return Note("; ".join(filter(None, [left, changed, proof_line(check_recorded(card))])))


def _micro_batches(run: _Run) -> Iterator[tuple[int, list[Batch]]]:
    pad_id = run.tokenizer.pad_token_id
    for step in range(run.standing.step + 1, run.num_steps + 1):
        yield step, [collate(rows, pad_id) for rows in run.steps.micro_batches(step)]


def _validation_parts(rows: list[Row], recipe: Recipe, accelerator: Accelerator) -> list[list[Row]]:
    """This process's share of the validation rows, in micro-batches of similar length."""
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    mine = by_length[accelerator.process_index :: accelerator.num_processes]
    size = recipe.train.micro_batch_size
    return [mine[i : i + size] for i in range(0, len(mine), size)]


def _sizes(model: Any) -> dict[str, int]:
    """How much is trained of how much, as env.json keeps it."""
    trained, total = count_parameters(model)
    return {"trainable_parameters": trained, "all_parameters": total}


def _closing(run: _Run, metrics: Mapping[str, Any]) -> Iterator[Note]:
    """How the loss went, and where to look."""
    if "eval_loss" in metrics:
        yield Note(
            f"evaluation loss: {metrics['first_eval_loss']:.4f} before, {metrics['eval_loss']:.4f} after; "
            f"best {metrics['best_eval_loss']:.4f} at step {metrics['best_step']}"
        )
    folder = run.record.folder
    samples = f"; sample answers: {folder / SAMPLES_FILE}" if run.recipe.samples.prompts else ""
    yield Note(f"loss curve: {folder / 'loss.png'}{samples}")


def _result(run: _Run) -> RunResult:
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
