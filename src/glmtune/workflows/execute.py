"""A training run from recipe to checkpoints: planned, assembled, run. Read top to bottom."""

import math
import shlex
import signal
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from glmtune.conversation import encode_messages
from glmtune.data.batches import Batch, collate
from glmtune.generate import Sampling, complete_texts
from glmtune.methods import count_parameters
from glmtune.recipe import Recipe
from glmtune.run_files import RESULT_FILE, SAMPLES_FILE, read_json_lines, remove_folder, write_json
from glmtune.templates import Taught
from glmtune.training.loop import fit, mean_loss
from glmtune.training.progress import Progress, run_time
from glmtune.training.stopping import Interrupted
from glmtune.workflows.assemble import Run, assemble, validation_parts
from glmtune.workflows.checkpoints import save_checkpoint, take_up
from glmtune.workflows.events import Evaluated, Event, Note, RunResult, Stepped
from glmtune.workflows.outcome import worse_warning
from glmtune.workflows.plan import Plan, planning
from glmtune.workflows.rows import SplitRows

SHORT_STEPS = 50
"""A run of so many steps at most says each of them, unless `train.log_every` says otherwise."""


def training(
    recipe: Recipe, *, resume: bool = False, read: SplitRows | None = None
) -> Generator[Event, None, RunResult]:
    """Train; yield what happens. With `resume`, go on from the run folder's last checkpoint.

    `read`: the rows, where `check_training` has read them already.
    """
    plan = yield from planning(recipe, resume=resume, read=read)
    run = yield from assemble(plan)
    yield from plan.summary()
    if resume:
        yield take_up(run)
    if run.is_main:
        run.record.begin(_pinned(plan), _facts(run), is_new=not resume)
    try:
        yield from _train(run)
    except KeyboardInterrupt:
        if run.is_main and run.standing.step == 0 and not resume:
            remove_folder(plan.folder)  # nothing is lost, and the same can be begun again
        raise
    run.processes.wait()
    result = _result(run)
    yield from _closing(run, result.metrics)
    if worse := worse_warning(plan.recipe.method, plan.lr, result.metrics):
        yield Note(worse, is_warning=True)
    return result


def _pinned(plan: Plan) -> Recipe:
    """The recipe with the very model that it found on a hub."""
    if plan.location.adapter:
        return plan.recipe
    return plan.recipe.model_copy(update={"revision": plan.location.revision})


def _facts(run: Run) -> dict[str, Any]:
    """What env.json keeps: which model it is and where it lay, the rows' hashes, how much is trained."""
    location, (trained, total) = run.plan.location, count_parameters(run.model)
    model = {"name": location.name, "revision": location.revision, "folder": str(location.base.resolve())}
    sizes = {"trainable_parameters": trained, "all_parameters": total}
    return {"model": model, **run.plan.row_hashes, **sizes}


def _train(run: Run) -> Iterator[Event]:
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
    settings, standing, num_steps = run.recipe.train, run.standing, run.plan.num_steps
    per_epoch = run.plan.steps.per_epoch
    eval_every = settings.eval_every or math.ceil(num_steps / 10)
    save_every = settings.save_every or eval_every
    log_every = settings.log_every or (1 if num_steps <= SHORT_STEPS else 10)
    progress = Progress(steps=num_steps, steps_per_epoch=per_epoch)
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
        is_last = log.step == num_steps
        progress.add(log)
        if run.is_main:
            run.record.add({**asdict(log), "epoch": log.step / per_epoch})
        _record_ranks(run)
        is_due = log.step % log_every == 0 or is_last
        yield Stepped(log, num_steps, progress.line() if is_due else None)
        is_evaluated = log.step % eval_every == 0 or is_last
        is_best = (yield from _evaluate(run)) if is_evaluated else False
        is_stopping, is_interrupted = _is_out_of_patience(run), run.processes.is_any(run.stop.number > 0)
        if is_best or is_stopping or is_interrupted or is_last or log.step % save_every == 0:
            if not is_evaluated:  # weights that a step has just ruined are no checkpoint: look at one batch
                _evaluation_loss(run, run.validation[:1])
            yield save_checkpoint(run, is_best=is_best)
        if is_stopping and not is_last:
            yield Note(f"stopped early: no better evaluation loss in {settings.patience} evaluations")
            return
        if is_interrupted and not is_last:
            raise _interrupted(run)


def _micro_batches(run: Run) -> Iterator[tuple[int, list[Batch]]]:
    plan, pad_id = run.plan, run.plan.tokenizer.pad_token_id
    for step in range(run.standing.step + 1, plan.num_steps + 1):
        yield step, [collate(rows, pad_id) for rows in plan.steps.micro_batches(step)]


def _record_ranks(run: Run) -> None:
    """A line of ranks.jsonl at the start, and whenever a rank has changed."""
    if run.is_main and run.pruning and (run.standing.step == 0 or run.pruning.has_changed):
        run.record.add_ranks(run.standing.step, run.pruning.ranks)


def _is_out_of_patience(run: Run) -> bool:
    patience = run.recipe.train.patience
    return patience is not None and run.standing.evaluations_since_best >= patience


def _interrupted(run: Run) -> Interrupted:
    return Interrupted(
        f"interrupted; all {run.standing.step} of {run.plan.num_steps} steps so far are saved; go on with: "
        f"glmtune train {shlex.quote(str(run.record.folder))} --resume",
        number=run.stop.number or signal.SIGINT,
    )


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
    answers = _samples(run)
    if run.is_main:
        run.record.add_samples(standing.step, answers)
        run.record.draw(standing.step)
    run.processes.wait()
    yield Evaluated(standing.step, loss, before, is_best)
    return is_best


def _evaluation_loss(run: Run, batches: list[Batch]) -> float:
    """Mean loss over some validation batches. Raises `TrainingError` if it is not finite."""
    loss = mean_loss(run.objective, batches, run.processes)
    guard = replace(run.guard, rows_of=lambda _: validation_parts(run.plan))
    guard.check_evaluation(run.standing.step, loss, batches=batches)
    return loss


def _samples(run: Run) -> list[tuple[str, str]]:
    """The fixed prompts and the model's most likely answers.

    Every process answers, as every pass through the model is every process's: its weights may be shared out.
    """
    settings = run.recipe.samples
    if not settings.prompts:
        return []
    sampling = Sampling(do_sample=False, max_new_tokens=settings.max_new_tokens)
    tokenizer, taught = run.plan.tokenizer, Taught.of(run.recipe.data)
    asked = [
        encode_messages(tokenizer, [{"role": "user", "content": prompt}], taught=taught)
        for prompt in settings.prompts
    ]
    answers = complete_texts(run.model, tokenizer, asked, sampling)
    return list(zip(settings.prompts, answers, strict=True))


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
