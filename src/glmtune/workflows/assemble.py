"""The parts of a run, put together from its plan: opened, applied, built, in the order they are read."""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from glmtune.adapters.proof import Check, proof_line
from glmtune.adapters.store import Tensors, load_adapter, restore_trained
from glmtune.data.batches import Batch, collate, divide
from glmtune.data.row import TrainingRow
from glmtune.load import load_location, put_on_proven
from glmtune.locations import Location
from glmtune.log import without_false_alarms
from glmtune.methods import apply_method, begin_pruning, trainable_line
from glmtune.methods.adalora import Pruning
from glmtune.methods.freeze import read_unrounded
from glmtune.models.protocol import CausalLM
from glmtune.objectives import ObjectiveModule, build_objective
from glmtune.recipe import Method, Recipe, TrainedPart
from glmtune.training.guard import Guard
from glmtune.training.optim import build_optimizer, build_schedule
from glmtune.training.processes import Processes
from glmtune.training.stopping import StopRequest
from glmtune.workflows.cards import Untrained, look_at_base
from glmtune.workflows.events import Event, Note, drain
from glmtune.workflows.plan import Plan
from glmtune.workflows.rates import is_rate_high, lower_rate
from glmtune.workflows.rows import first_row
from glmtune.workflows.run_writer import RunWriter


@dataclass
class RunProgress:
    """How the run stands; saved with every checkpoint."""

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0


@dataclass
class Run:
    """The parts of a run, put together once."""

    plan: Plan
    base: Untrained
    model: CausalLM
    objective: ObjectiveModule
    module: nn.Module
    """The objective, with DDP around it where there are several processes."""
    optimizer: Optimizer
    schedule: LRScheduler
    validation: list[Batch]
    guard: Guard
    record: RunWriter
    pruning: Pruning | None
    """What the method does within each step."""
    standing: RunProgress = field(default_factory=RunProgress)
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def recipe(self) -> Recipe:
        """The plan's."""
        return self.plan.recipe

    @property
    def processes(self) -> Processes:
        """The plan's."""
        return self.plan.processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.processes.is_main


def assemble(plan: Plan) -> Generator[Event, None, Run]:
    """Open the model, make what is trained trainable, build what trains it.

    Nothing is written yet, so bad input leaves no trace.
    """
    settings, processes = plan.recipe.train, plan.processes
    base = _open_base(plan)
    untrained = look_at_base(base, plan.location, plan.tokenizer)
    torch.manual_seed(settings.seed)
    model = yield from _tuned(base, plan.location, plan.recipe.method)
    if settings.gradient_checkpointing:
        with without_false_alarms():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    yield Note(trainable_line(model))
    yield first_row(plan.tokenizer, plan.rows.train.rows)
    torch.manual_seed(settings.seed + processes.rank)  # dropout differs between processes
    optimizer = build_optimizer(model, settings)
    schedule = build_schedule(optimizer, settings, plan.num_steps)
    objective = build_objective(model, plan.recipe.objective)
    return Run(
        plan=plan,
        base=untrained,
        model=model,
        objective=objective,
        module=processes.wrap(objective),
        optimizer=processes.prepare(optimizer),
        schedule=schedule,
        validation=[collate(part, plan.tokenizer.pad_token_id) for part in validation_parts(plan)],
        guard=_guard(plan, objective),
        record=RunWriter(plan.folder, tensorboard=settings.tensorboard),
        pruning=begin_pruning(model, plan.recipe.method, plan.num_steps),
    )


def _open_base(plan: Plan) -> Any:
    """The model below what is trained."""
    held, is_whole = plan.held, plan.recipe.method.kept is TrainedPart.MODEL
    return load_location(
        plan.location.under,
        template=plan.recipe.template or plan.location.template,
        # all weights trained: read as fp32, the type they are trained in, not rounded on the way
        dtype=replace(held, dtype=torch.float32) if is_whole else held,
        device=str(plan.processes.device),
        quant=plan.recipe.quant,
    )


def _tuned(base: Any, location: Location, method: Method) -> Generator[Note, None, Any]:
    """A base with the method's weights, to be trained: new ones, or those of the place's adapter.

    Says what was proven of the adapter. Raises `CheckpointError` for anything that is not as it was saved.
    """
    if location.adapter is None:
        model = apply_method(base, method)
        if method.kept is TrainedPart.WEIGHTS:
            read_unrounded(model, location.folder)
        return model

    def put_on(adapter: Path, tensors: Tensors) -> Any:
        if method.kept is not TrainedPart.WEIGHTS:
            return load_adapter(base, adapter, tensors, is_trainable=True)
        model = apply_method(base, method)  # in fp32 among the base's own, however these are held
        restore_trained(model, adapter, tensors)
        return model

    checks: list[Check] = []
    model = drain(put_on_proven(base, location, put_on), checks.append)
    yield Note(f"goes on from {location.adapter}: {proof_line(checks)}")
    return model


def _guard(plan: Plan, objective: ObjectiveModule) -> Guard:
    method = plan.recipe.method
    return Guard(
        objective,
        plan.processes,
        lower_lr=lower_rate(method, plan.lr),
        is_rate_high=is_rate_high(method, plan.lr),
        rows_of=plan.steps.micro_batches,
    )


def validation_parts(plan: Plan) -> list[list[TrainingRow]]:
    """This process's share of the validation rows, in micro-batches."""
    size, processes = plan.recipe.train.micro_batch_size, plan.processes
    return divide(plan.rows.validation.rows, size, rank=processes.rank, number=processes.number)
