"""A training run from recipe to checkpoints: plan, assemble, evaluate, step, save. Read top to bottom.

`glmtune train` parses the recipe and reads the rows (workflows.early), then comes here.
"""

import signal
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from typing import Any

from glmtune.data.batches import Batch, collate
from glmtune.errors import TrainingError
from glmtune.evaluation.forgetting import Forgetting
from glmtune.log import is_main_process
from glmtune.recipe import Recipe
from glmtune.reports.before_after import pair_answers
from glmtune.run_files import (
    REPLAY_FILE,
    RESULT_FILE,
    SAMPLES_FILE,
    read_json_lines,
    remove_run,
    write_json,
    write_text,
)
from glmtune.run_process import alone_in, own_command
from glmtune.templates import Taught
from glmtune.training.allocations import trim_heap
from glmtune.training.loop import StepLog, fit, mean_loss
from glmtune.training.memory import is_out_of_memory
from glmtune.training.progress import Progress, run_time
from glmtune.training.stopping import Interrupted
from glmtune.workflows.assemble import Run, assemble, validation_parts
from glmtune.workflows.before_after import SampleQuestion, ask_questions, built_in_questions, sample_questions
from glmtune.workflows.checkpoints import copy_checkpoints, fetch_newer, restore_run, save_checkpoint
from glmtune.workflows.early import settled_folder
from glmtune.workflows.events import BeforeAndAfter, Evaluated, Event, Note, RunResult, Stepped, Working
from glmtune.workflows.memory_record import go_on_measuring, record_memory
from glmtune.workflows.outcome import worse_warning
from glmtune.workflows.plan import planning
from glmtune.workflows.remedies import find_leaner, refusing_out_of_memory
from glmtune.workflows.replay import NAME, replay_text
from glmtune.workflows.report_forgetting import advice, little_learned, prompts_of, report_of_run, told
from glmtune.workflows.reporting import renew_report
from glmtune.workflows.resuming import resume_words
from glmtune.workflows.retention import general_divergence
from glmtune.workflows.room import forecast_facts, require_fitting
from glmtune.workflows.rows import SplitRows

SHORT_STEPS = 50
"""A run of at most this many steps prints every step, unless `train.log_every` says otherwise."""


def training(
    recipe: Recipe, *, resume: bool = False, force: bool = False, rows: SplitRows | None = None
) -> Generator[Event, None, RunResult]:
    """Train a recipe's model; yield an event for each thing that happens.

    With `resume`, continue from the run folder's last checkpoint. With `force`, memory that does not suffice
    is a warning. `rows`: the rows, if `check_training` has read them already.
    """
    with alone_in(settled_folder(recipe)) if is_main_process() else nullcontext():
        return (yield from _training(recipe, resume=resume, force=force, rows=rows))


def _training(
    recipe: Recipe, *, resume: bool, force: bool, rows: SplitRows | None
) -> Generator[Event, None, RunResult]:
    if resume:
        yield from fetch_newer(recipe)
    plan = yield from planning(recipe, resume=resume, rows=rows)  # settings and rows; no weights yet
    plan = replace(plan, is_forced=force)
    forecast = yield from require_fitting(plan)
    with refusing_out_of_memory():
        run = yield from assemble(plan)  # base model, adapter, optimizer, schedule, guard
    run.forecast = forecast
    plan = run.plan  # settled by the memory that the model has left
    yield from plan.summary()
    if resume:
        yield from restore_run(run)
        go_on_measuring(run)
    if run.is_main:  # only now: whatever was refused above has left no trace on disk
        location, (num_trainable, num_all) = plan.location, run.counts
        facts = {  # for env.json
            "model": {
                "name": location.name,
                "revision": location.revision,
                "folder": str(location.base.resolve()),
            },
            **plan.row_hashes,
            **({"empty_rows": plan.rows.num_empty} if plan.rows.num_empty else {}),
            "memory": forecast_facts(forecast) if forecast else None,
            "types": {"held": plan.base_dtype.name, "computing": plan.processes.precision},
            "trainable_parameters": num_trainable,
            "all_parameters": num_all,
            "rows_of_several_rounds": plan.rows.num_several,
            **prompts_of(run.reference),
        }
        # recipe.yaml names the revision that was loaded: a hub's name may mean another model tomorrow
        pinned = plan.recipe.model_copy(update={"revision": location.revision})
        run.writer.begin(
            plan.recipe if location.adapter else pinned,
            facts,
            is_new=not resume,
            is_changed=bool(plan.changed),
        )
        run.writer.write_lengths(plan.rows)
        if plan.replay and not resume:
            write_text(plan.folder / REPLAY_FILE, replay_text(plan.replay), is_durable=True)
    with run.writer.recorded(plan.num_steps) if run.is_main else nullcontext():
        return (yield from _carried_out(run, resume=resume))


def _carried_out(run: Run, *, resume: bool) -> Generator[Event, None, RunResult]:
    """Train, report and sum up a run that stands."""
    plan = run.plan
    try:
        with refusing_out_of_memory(lambda: find_leaner(plan, run.model, run.memory)), closing(run.writer):
            yield from _train(run)
            with run.processes.joined():
                forgotten = yield from report_of_run(run.model, run.reference, plan, run.progress.step)
            if run.reference:
                run.meter.end("report")
    except (KeyboardInterrupt, TrainingError) as error:
        is_lost = isinstance(error, KeyboardInterrupt) or is_out_of_memory(error.__cause__ or error)
        if is_lost and run.is_main and run.progress.step == 0 and not resume:
            remove_run(plan.folder)  # nothing is lost, and the same command can start over
        elif run.is_main:
            renew_report(run.writer.folder)
        raise
    run.processes.wait()  # until the main process has written the last line of metrics.jsonl
    record_memory(run)
    return (yield from _finish(run, forgotten))


def _train(run: Run) -> Iterator[Event]:
    """Evaluate the untrained model, then step until the plan, patience or a signal ends the training."""
    start = time.perf_counter()
    if run.progress.step == 0:
        _record_ranks(run)
        yield from _evaluate(run)
    if _is_out_of_patience(run):
        yield Note("this run had stopped early; there is nothing to go on with")
        return
    with run.stop.deferred():  # a signal is only noted, so that the step in progress is finished and saved
        yield from _steps(run)
    if run.pruning:
        yield Note(run.pruning.line())
    yield Note(f"train run time: {run_time(time.perf_counter() - start)}")


def _steps(run: Run) -> Iterator[Event]:
    """Run each optimizer step, with the evaluations and checkpoints that fall due after it.

    Raises `Interrupted` once the step during which a signal came is saved.
    """
    plan, settings, progress = run.plan, run.recipe.train, run.progress
    num_steps, per_epoch = plan.num_steps, plan.steps.per_epoch
    eval_every = plan.eval_every
    save_every = settings.save_every or eval_every
    log_every = settings.log_every or (1 if num_steps <= SHORT_STEPS else 10)
    meter = Progress(steps=num_steps, steps_per_epoch=per_epoch)
    for log in make_steps(run, range(progress.step + 1, num_steps + 1)):
        progress.step = log.step
        is_last = log.step == num_steps
        meter.add(log)
        if run.is_main:
            known = {name: value for name, value in asdict(log).items() if value not in ({}, None)}
            run.writer.add(known | {"epoch": log.step / per_epoch})
        _record_ranks(run)
        is_due = log.step % log_every == 0 or is_last
        yield Stepped(log, num_steps, meter.line() if is_due else None)
        is_evaluated = log.step % eval_every == 0 or is_last
        is_best = (yield from _evaluate(run)) if is_evaluated else False
        # asked of all processes: each must take the same branch, or the others wait for it forever
        is_stopping, is_interrupted = _is_out_of_patience(run), run.processes.is_any(run.stop.number > 0)
        if is_best or is_stopping or is_interrupted or is_last or log.step % save_every == 0:
            if is_stopping and not is_last:  # before the save: a run that goes on from it asks no more
                _ask(run, built_in_questions(run.recipe.samples))
            run.processes.enter(f"saving step {log.step}")
            yield Working("saving")
            if not is_evaluated:
                # the step may have ruined the weights: one batch tells, before they are saved
                _evaluation_loss(run, run.validation[:1])
            yield save_checkpoint(run, is_best=is_best)
            yield from copy_checkpoints(run)
            run.meter.end("saving")
        if is_interrupted:
            raise Interrupted(
                f"interrupted; all {progress.step} of {num_steps} steps so far are saved",
                go_on=resume_words(run.writer.folder, own_command()),
                number=run.stop.number or signal.SIGINT,
            )
        if is_stopping and not is_last:
            yield Note(f"stopped early: no better evaluation loss in {settings.patience} evaluations")
            return


def make_steps(run: Run, numbers: range) -> Iterator[StepLog]:
    """Make the optimizer steps of these numbers; yield the log of each."""
    plan = run.plan
    # collated lazily, one step at a time: the padded batches of a whole run need not fit into memory
    batches = (
        (step, [collate(rows, plan.tokenizer.pad_token_id) for rows in plan.steps.micro_batches(step)])
        for step in numbers
    )
    return fit(
        run.objective,
        run.module,
        batches,
        run.optimizer,
        run.schedule,
        run.processes,
        max_grad_norm=run.recipe.train.max_grad_norm,
        guard=run.guard,
        part=run.pruning,
        meter=run.meter,
        sources=[*run.recipe.data.names_of_sources(), *([NAME] if plan.replay else [])],
    )


def _record_ranks(run: Run) -> None:
    """Write a line of ranks.jsonl at the start, and after each step that changed an AdaLoRA rank."""
    if run.is_main and run.pruning and (run.progress.step == 0 or run.pruning.has_changed):
        run.writer.add_ranks(run.progress.step, run.pruning.ranks)


def _is_out_of_patience(run: Run) -> bool:
    patience = run.recipe.train.patience
    return patience is not None and run.progress.evaluations_since_best >= patience


def _evaluate(run: Run) -> Generator[Event, None, bool]:
    """Take the evaluation loss, answer the sample prompts, draw; return True for a new best loss."""
    progress = run.progress
    run.processes.enter(f"the evaluation after step {progress.step}")
    yield Working("evaluating")
    trim_heap()  # of loading or of the steps
    loss = _evaluation_loss(run, run.validation)
    best_before = progress.best_loss
    # AdaLoRA: the best checkpoint is to have the ranks that were asked for, so best and patience count only
    # from the step on at which the ranks have settled. The untrained model (step 0) is never the best.
    is_settled = run.pruning is None or run.pruning.has_settled
    is_counted = progress.step > 0 and is_settled
    is_best = is_counted and (best_before is None or loss < best_before)
    if is_best:
        progress.best_loss, progress.best_step, progress.evaluations_since_best = loss, progress.step, 0
    elif is_counted:
        progress.evaluations_since_best += 1
    facts: dict[str, Any] = {} if is_settled else {"is_settled": False}
    if run.reference and run.recipe.retain.report == "evaluations":
        with run.processes.joined():
            facts["general_kl"] = general_divergence(run.model, run.reference).mean
    if run.is_main:
        run.writer.add({"step": progress.step, "eval_loss": loss, **facts})
    if run.recipe.samples.prompts:
        yield Working("answering samples")
    settings, is_end = run.recipe.samples, progress.step in (0, run.plan.num_steps)
    _ask(run, [*sample_questions(settings), *(built_in_questions(settings) if is_end else ())])
    run.meter.end("evaluation")
    record_memory(run)
    if run.is_main:
        run.writer.draw(progress.step)
    run.processes.wait()
    run.meter.end("pictures")
    trim_heap()
    yield Evaluated(progress.step, loss, best_before, is_best)
    return is_best


def _evaluation_loss(run: Run, batches: list[Batch]) -> float:
    """Return the mean loss per learned token over the validation `batches` of all processes.

    Raises `TrainingError` if it is not finite.
    """
    loss = mean_loss(run.objective, batches, run.processes)
    # the run's guard names rows of training steps; here the batches are made of validation rows
    guard = replace(run.guard, rows_of=lambda _: validation_parts(run.plan))
    guard.check_evaluation(run.progress.step, loss, batches=batches)
    return loss


def _ask(run: Run, questions: Sequence[SampleQuestion]) -> None:
    """Write the model's answers to these questions to samples.jsonl."""
    taught, longest = Taught.of(run.recipe.data), run.recipe.samples.max_new_tokens
    # outside `is_main`: every process takes part in the forward passes
    with run.processes.joined():
        lines = ask_questions(run.model, run.plan.tokenizer, questions, taught=taught, max_new_tokens=longest)
    if run.is_main:
        run.writer.add_samples(run.progress.step, lines)


def _finish(run: Run, forgotten: Forgetting | None) -> Generator[Event, None, RunResult]:
    """Sum metrics.jsonl up in eval.json, tell how the loss went and where to look; return the result."""
    # read back instead of kept in memory: a resumed run has the figures of the steps before it too
    lines = read_json_lines(run.writer.metrics_path) if run.is_main else []
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    metrics: dict[str, Any] = {"steps": run.progress.step, "best_step": run.progress.best_step}
    folder = run.writer.folder
    if steps and evaluations:
        metrics |= {
            "first_loss": steps[0]["loss"],
            "loss": steps[-1]["loss"],
            "first_eval_loss": evaluations[0]["eval_loss"],
            "eval_loss": evaluations[-1]["eval_loss"],
            "best_eval_loss": run.progress.best_loss,
            "train_s": sum(line.get("step_s") or 0.0 for line in steps),
            "peak_memory_gib": steps[-1].get("peak_memory_gib"),
        }
        if forgotten:
            metrics |= {"verdict": forgotten.verdict, "general_kl": forgotten.kl.mean}
        write_json(folder / RESULT_FILE, metrics)
        yield Note(
            f"evaluation loss: {metrics['first_eval_loss']:.4f} before, {metrics['eval_loss']:.4f} after; "
            f"best {metrics['best_eval_loss']:.4f} at step {metrics['best_step']}"
        )
    if run.is_main and built_in_questions(run.recipe.samples):
        yield BeforeAndAfter(tuple(pair_answers(read_json_lines(folder / SAMPLES_FILE))))
    at = {"lr": run.plan.lr, "epochs": run.plan.num_steps / run.plan.steps.per_epoch}
    if forgotten:
        yield from told(forgotten)
        if little := little_learned(forgotten, metrics, **at):
            yield little
    samples = f"; sample answers: {folder / SAMPLES_FILE}" if run.recipe.samples.prompts else ""
    yield Note(f"loss curve: {folder / 'loss.png'}{samples}")
    if run.is_main:
        yield renew_report(folder)
    yield from copy_checkpoints(run, is_end=True)
    if worse := worse_warning(run.recipe.method, run.plan.lr, metrics):
        yield Note(worse, is_warning=True)
    if forgotten and (cure := advice(forgotten, run.recipe, **at)):
        yield cure
    return RunResult(folder, metrics, {})
