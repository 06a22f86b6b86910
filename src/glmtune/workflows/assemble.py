"""Build the parts of a run from its plan: load the base, put the adapter on, build optimizer and guard."""

from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from glmtune.adapters.off import without_adapter
from glmtune.adapters.proof import Check, proof_line
from glmtune.adapters.store import Tensors, load_adapter, restore_trained
from glmtune.data.batches import Batch, collate, divide
from glmtune.data.row import TrainingRow
from glmtune.load import load_location, put_on_with_checks
from glmtune.locations import Location
from glmtune.methods import apply_method, begin_pruning, count_parameters, trainable_line
from glmtune.methods.adalora import Pruning
from glmtune.methods.freeze import read_unrounded
from glmtune.models.dtype import Choice
from glmtune.models.protocol import CausalLM
from glmtune.objectives import ObjectiveModule, build_objective
from glmtune.processor import mapped_bytes
from glmtune.recipe import Method, Recipe, TrainedPart
from glmtune.reports.canvas import new_figure
from glmtune.training.guard import Guard
from glmtune.training.memory import MemoryMeter
from glmtune.training.optim import build_optimizer, build_schedule
from glmtune.training.processes import Processes
from glmtune.training.stopping import StopRequest
from glmtune.workflows.cards import Untrained, look_at_base
from glmtune.workflows.events import Event, Note, drain
from glmtune.workflows.fitting import fit_into_memory
from glmtune.workflows.nearness import is_switched_off, keep_near_base, record_own_rows
from glmtune.workflows.plan import Plan
from glmtune.workflows.rates import is_rate_high, lower_rate
from glmtune.workflows.remedies import Memory
from glmtune.workflows.replay import answer_replay
from glmtune.workflows.report_forgetting import reference_of_run
from glmtune.workflows.retention import Reference
from glmtune.workflows.rows import first_row
from glmtune.workflows.run_writer import RunWriter
from glmtune.workflows.sharing import load_to_share, require_shareable

if TYPE_CHECKING:
    from glmtune.workflows.forecast import Forecast


@dataclass
class RunProgress:
    """Step and best evaluation loss so far; saved with every checkpoint."""

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0


@dataclass
class Run:
    """The parts of a run in progress: model, objective, optimizer, validation batches, file writer."""

    plan: Plan
    memory: Memory
    """The memory that was free before step 1, and what a step needs."""
    meter: MemoryMeter
    """Measures what is taken of it."""
    limit: int
    """Bytes that the process may hold in all."""
    base: Untrained
    model: CausalLM
    objective: ObjectiveModule
    counts: tuple[int, int]
    """The numbers of trained and of all weights."""
    module: nn.Module
    """The objective, as it is called in steps: wrapped in DDP or DeepSpeed if there are several processes."""
    optimizer: Optimizer
    schedule: LRScheduler
    validation: list[Batch]
    """This process's share of the validation rows, collated."""
    guard: Guard
    writer: RunWriter
    pruning: Pruning | None
    """AdaLoRA's rank pruning, done within each step; None for other methods."""
    reference: Reference | None = None
    """The base's answers, for the report of forgetting; None if there is to be none."""
    forecast: "Forecast | None" = None
    """The memory that was expected before the weights were read; None for a small model."""
    progress: RunProgress = field(default_factory=RunProgress)
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def recipe(self) -> Recipe:
        """The plan's recipe, complete."""
        return self.plan.recipe

    @property
    def processes(self) -> Processes:
        """The plan's processes."""
        return self.plan.processes

    @property
    def is_main(self) -> bool:
        """True if this process writes the run's files."""
        return self.processes.is_main


def assemble(plan: Plan) -> Generator[Event, None, Run]:
    """Load the base, make the method's weights trainable, build objective, optimizer and schedule.

    Writes nothing yet, so bad input leaves no trace.
    """
    settings, processes = plan.recipe.train, plan.processes
    new_figure()  # imports matplotlib: what a run takes later it takes before its memory is looked at
    meter = MemoryMeter(processes.device)
    require_shareable(plan)
    if processes.engine.shares_weights:
        objective, counts, optimizer, asked = yield from _load_shared(plan, meter)
    else:
        base = _load_base_to_train(plan)
        # before the method is applied: full and freeze change the base's own weights
        asked = yield from _ask_base(plan, base, meter)
        torch.manual_seed(settings.seed)  # new adapter weights are equal on every process
        model = yield from _add_trainable_weights(base, plan.location, plan.recipe.method)
        yield Note(trainable_line(model))
        yield first_row(plan.tokenizer, plan.rows.train.rows)
        objective, counts = build_objective(model, plan.recipe.objective), count_parameters(model)
        optimizer = None
    plan, untrained, reference = asked
    model = objective.model
    yield from keep_near_base(plan, objective)
    meter.end("loading")
    plan, memory = yield from fit_into_memory(plan, objective)
    meter.end("probe")
    processes.settle()
    limit = meter.limit(memory.free, mapped_bytes((*model.parameters(), *model.buffers())))
    torch.manual_seed(settings.seed + processes.rank)  # dropout differs between processes
    optimizer = optimizer or build_optimizer(model, settings)
    schedule = build_schedule(optimizer, settings, plan.num_steps)
    # after the schedule: that takes the plain optimizer, not the one with loss scaling around it
    module, optimizer = processes.wrap(objective, optimizer, max_norm=settings.max_grad_norm)
    return Run(
        plan=plan,
        memory=memory,
        meter=meter,
        limit=limit,
        base=untrained,
        model=model,
        objective=objective,
        counts=counts,
        module=module,
        optimizer=optimizer,
        schedule=schedule,
        validation=[collate(part, plan.tokenizer.pad_token_id) for part in validation_parts(plan)],
        guard=Guard(
            objective,
            processes,
            lower_lr=lower_rate(plan.recipe.method, plan.lr),
            is_rate_high=is_rate_high(plan.recipe.method, plan.lr),
            rows_of=plan.steps.micro_batches,
        ),
        writer=RunWriter(plan.folder, report_to=settings.report_to),
        pruning=begin_pruning(model, plan.recipe.method, plan.num_steps),
        reference=reference,
    )


def _ask_base(
    plan: Plan, base: CausalLM, meter: MemoryMeter
) -> Generator[Event, None, tuple[Plan, Untrained, Reference | None]]:
    """Take of the base what a run keeps of it; return it, with the plan as the base's answers make it."""
    untrained = look_at_base(base, plan.location, plan.tokenizer)
    meter.end("loading")
    reference = yield from reference_of_run(plan, base)
    if reference:
        meter.end("report")
    plan = yield from answer_replay(plan, base)
    plan = yield from record_own_rows(plan, base)
    return plan, untrained, reference


def _load_shared(
    plan: Plan, meter: MemoryMeter
) -> Generator[
    Event, None, tuple[ObjectiveModule, tuple[int, int], Optimizer, tuple[Plan, Untrained, Reference | None]]
]:
    """Return the objective with weights shared over the processes, their numbers, the optimizer over them.

    Returns the result of `_ask_base` too. The model is mapped from its files, and shared layer by layer; so
    the method is applied before, and the base asked after that, with the method's weights switched off.
    """
    base, method, settings = load_to_share(plan), plan.recipe.method, plan.recipe.train
    torch.manual_seed(settings.seed)  # new adapter weights are equal on every process
    model = yield from _add_trainable_weights(base, plan.location, method, is_widened=False)
    counts = count_parameters(model)
    yield Note(trainable_line(model))
    yield first_row(plan.tokenizer, plan.rows.train.rows)
    objective = build_objective(model, plan.recipe.objective)
    optimizer = plan.processes.share(
        objective, lambda: build_optimizer(model, settings), max_norm=settings.max_grad_norm
    )
    with without_adapter(model) if is_switched_off(plan) else nullcontext(), plan.processes.joined():
        return objective, counts, optimizer, (yield from _ask_base(plan, model, meter))


def _load_base_to_train(plan: Plan) -> CausalLM:
    """Load the model that the method is applied to, without an adapter that may lie on it."""
    is_whole = plan.recipe.method.kept is TrainedPart.MODEL
    return load_location(
        plan.location.under,
        template=plan.recipe.template or plan.location.template,
        # full: all weights are trained, in fp32, so read them as fp32 instead of rounding them on the way
        dtype=Choice(torch.float32, torch.float32, plan.base_dtype.why) if is_whole else plan.base_dtype,
        device=str(plan.processes.device),
        quant=plan.recipe.quant,
    )


def _add_trainable_weights(
    base: CausalLM, location: Location, method: Method, *, is_widened: bool = True
) -> Generator[Note, None, CausalLM]:
    """Return the base with the method's trainable weights: new ones, or those of the location's adapter.

    `is_widened`: False leaves the base's own weights in the type that they are held in.

    Notes which checks the adapter passed. Raises `CheckpointError` if it is not as it was saved.
    """
    if location.adapter is None:
        new_model: CausalLM = apply_method(base, method, is_widened=is_widened)
        if method.kept is TrainedPart.WEIGHTS:
            read_unrounded(new_model, location.folder)
        return new_model

    def put_on(adapter: Path, tensors: Tensors) -> CausalLM:
        if method.kept is not TrainedPart.WEIGHTS:
            loaded: CausalLM = load_adapter(base, adapter, tensors, is_trainable=True)
            return loaded
        # freeze: fp32 copies take the place of the base's own weights, whatever type these are held in
        model: CausalLM = apply_method(base, method)
        restore_trained(model, adapter, tensors)
        return model

    checks: list[Check] = []
    model = drain(put_on_with_checks(base, location, put_on), checks.append)
    yield Note(f"goes on from {location.adapter}: {proof_line(checks)}")
    return model


def validation_parts(plan: Plan) -> list[list[TrainingRow]]:
    """Return this process's share of the validation rows, in micro-batches."""
    size, processes = plan.recipe.train.micro_batch_size, plan.processes
    return divide(plan.rows.validation.rows, size, rank=processes.rank, number=processes.number)
