"""The steps of a run, with what happens around them: evaluations, checkpoints, the request to end."""

import math
import shlex
import signal
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from glmtune.adapters.proof import recorded_difference
from glmtune.adapters.store import save_trained
from glmtune.conversation import encode_messages
from glmtune.data.batches import Batch, Steps, collate
from glmtune.data.row import Row
from glmtune.files import copy_small_files
from glmtune.generate import Sampling, answer
from glmtune.load import check_outline
from glmtune.methods.adalora import Pruning
from glmtune.objectives import Objective
from glmtune.places import Place, resolve
from glmtune.recipe import Kept, Recipe
from glmtune.runs import last_checkpoint, make_folder, replacing
from glmtune.templates import Taught
from glmtune.training.guard import Guard
from glmtune.training.loop import fit, mean_loss
from glmtune.training.processes import Processes
from glmtune.training.progress import Progress, run_time
from glmtune.training.state import collect_state, write_state
from glmtune.training.stopping import Interrupted, StopRequest
from glmtune.workflows.cards import Untrained, write_card
from glmtune.workflows.events import Evaluated, Event, Note, Saved, Stepped
from glmtune.workflows.record import RunRecord
from glmtune.workflows.rows import Rows

SHORT_STEPS = 50
"""A run of so many steps at most says each of them, unless `train.log_every` says otherwise."""


@dataclass
class Standing:
    """How the run stands; saved with every checkpoint."""

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0


@dataclass
class Run:
    """The parts of a run, put together once."""

    recipe: Recipe
    place: Place
    tokenizer: Any
    rows: Rows
    processes: Processes
    base: Untrained
    model: Any
    objective: Objective
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
    standing: Standing = field(default_factory=Standing)
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.processes.is_main


def train_through(run: Run) -> Iterator[Event]:
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


def _steps(run: Run) -> Iterator[Event]:
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
        run.processes,
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


def _is_interrupted(run: Run) -> bool:
    """Whether any of the processes has been asked to end: all stop at the same step."""
    return run.processes.is_any(run.stop.number > 0)


def _record_ranks(run: Run) -> None:
    """A line of ranks.jsonl at the start, and whenever a rank has changed."""
    if run.is_main and run.pruning and (run.standing.step == 0 or run.pruning.has_changed):
        run.record.add_ranks(run.standing.step, run.pruning.ranks)


def _is_out_of_patience(run: Run) -> bool:
    patience = run.recipe.train.patience
    return patience is not None and run.standing.evaluations_since_best >= patience


def _evaluate(run: Run) -> Generator[Event, None, bool]:
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
    run.processes.wait()
    yield Evaluated(standing.step, loss, before, is_best)
    return is_best


def _evaluation_loss(run: Run, batches: list[Batch]) -> float:
    """Mean loss over the first validation batches. Raises `TrainingError` if it is not finite."""
    loss = mean_loss(run.objective, batches, run.processes)
    rows = run.rows.validation.rows
    guard = replace(run.guard, rows_of=lambda _: validation_parts(rows, run.recipe, run.processes))
    guard.check_evaluation(run.standing.step, loss, batches=batches)
    return loss


def _samples(run: Run) -> list[tuple[str, str]]:
    """The fixed prompts and the model's most likely answers."""
    settings = run.recipe.samples
    if not settings.prompts:
        return []
    sampling = Sampling(do_sample=False, max_new_tokens=settings.max_new_tokens)
    taught = Taught.of(run.recipe.data)
    asked = [
        encode_messages(run.tokenizer, [{"role": "user", "content": prompt}], taught=taught)
        for prompt in settings.prompts
    ]
    answers = answer(run.model, run.tokenizer, asked, sampling)
    return list(zip(settings.prompts, answers, strict=True))


def _save(run: Run, *, is_best: bool) -> Saved:
    """A checkpoint: weights, card, and all that an exact continuation needs."""
    state = collect_state(run.optimizer, run.schedule, run.processes)
    state["standing"] = asdict(run.standing)
    if run.pruning:
        state["pruning"] = run.pruning.state_dict()
    path = run.record.checkpoint_path(run.standing.step)
    card = write_card(run.recipe, run.place, run.base, run.tokenizer, run.model, step=run.standing.step)
    if run.is_main:
        make_folder(path.parent)
        with replacing(path) as partial:
            partial.mkdir()
            if run.recipe.method.kept is Kept.MODEL:
                copy_small_files(run.place.base, partial)
            write_state(state, partial)
            save_trained(run.model, partial, card)
            if not last_checkpoint(run.record.folder):  # a run's first: can it be opened at all?
                is_whole = run.recipe.method.kept is Kept.MODEL
                check_outline(resolve(partial, base=None if is_whole else run.place.base))
        run.record.link_checkpoint(run.standing.step, best_step=run.standing.best_step)
        run.record.prune(run.recipe.train.keep_checkpoints, best_step=run.standing.best_step)
    run.processes.wait()
    assert card.probe is not None
    return Saved(path, is_best, recorded_difference(card.probe))


def _micro_batches(run: Run) -> Iterator[tuple[int, list[Batch]]]:
    pad_id = run.tokenizer.pad_token_id
    for step in range(run.standing.step + 1, run.num_steps + 1):
        yield step, [collate(rows, pad_id) for rows in run.steps.micro_batches(step)]


def validation_parts(rows: list[Row], recipe: Recipe, processes: Processes) -> list[list[Row]]:
    """This process's share of the validation rows, in micro-batches of similar length."""
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    mine = by_length[processes.rank :: processes.number]
    size = recipe.train.micro_batch_size
    return [mine[i : i + size] for i in range(0, len(mine), size)]
