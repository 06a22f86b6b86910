"""The training loop, in one function: micro-batches -> token-weighted gradient -> clip -> optimizer step."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from glmtune.data.batches import Batch
from glmtune.objectives.base import ObjectiveModule
from glmtune.training.guard import Guard
from glmtune.training.memory import MemoryMeter
from glmtune.training.processes import Processes


@dataclass(frozen=True, slots=True)
class StepLog:
    """The figures of an optimizer step, as written to metrics.jsonl."""

    step: int
    loss: float
    """Mean loss per learned token over the whole step, all micro-batches, all processes; of replay rows too,
    without the divergence of `retain.kl`."""
    grad_norm: float
    """Norm before clipping; nan or infinite if loss scaling has skipped the step."""
    lr: float
    tokens: int
    """Learned tokens of the step, of all processes."""
    tokens_per_s: float
    """Tokens through the model per second, prompts included, of all processes."""
    step_s: float
    """Seconds of the step, its batches being made included."""
    peak_memory_gib: float
    """Highest memory so far: the GPU's allocations, or on a CPU this process's resident memory."""
    memory_gib: float
    """The highest of this step alone, its batches being made included."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """The step's mean loss by the source of the rows, where there are several."""
    kl: float | None = None
    """Mean KL divergence from the base per learned token of the run's own rows, where `retain.kl` counts."""


class StepPart(Protocol):
    """A method's own part of each training step, as AdaLoRA's penalty and pruning."""

    def penalty(self) -> Tensor:
        """Return a term of the weights to add to the step's mean loss, equal on all processes; not logged."""

    def after_step(self, step: int) -> None:
        """Run after the optimizer has changed the weights, while their gradients still exist."""


def fit(
    objective: ObjectiveModule,
    module: nn.Module,
    steps: Iterable[tuple[int, Sequence[Batch]]],
    optimizer: Optimizer,
    schedule: LRScheduler,
    processes: Processes,
    *,
    max_grad_norm: float = 1.0,
    guard: Guard | None = None,
    part: StepPart | None = None,
    meter: MemoryMeter | None = None,
    sources: Sequence[str] = (),
) -> Iterator[StepLog]:
    """Train and yield one log per step; the caller decides when to print, evaluate and save.

    `steps` gives (step number, this process's micro-batches). The sum of losses is divided once by the
    learned tokens of the whole step, so 8 micro-batches of 1 equal 1 micro-batch of 8, and two processes
    equal one, even if completions differ in length. `module` is the objective as `processes` wraps it, which
    have prepared `optimizer` too. `sources` names those of the rows. Raises `TrainingError` before the
    optimizer's step if loss or gradient is not finite or exactly 0; `guard` can name the rows.
    """
    guard = guard or Guard(objective, processes, lower_lr=float(schedule.base_lrs[0]) / 10)
    meter = meter or MemoryMeter(processes.device)
    trainable = processes.trained(module)
    start = time.perf_counter()
    for step, micro in steps:  # what it takes to make the batches is a part of the step's time
        module.train()
        processes.enter(f"step {step}")
        # the divisor of every loss in this step, so it must be known before the first backward pass
        items, tokens = _count_tokens(processes, micro, objective)
        losses = _StepLosses(sources, processes)
        for batch in micro:
            is_last = batch is micro[-1]
            # gradients add up in p.grad; processes exchange them once, in the last backward pass
            with processes.autocast(), objective.passes(), processes.exchanging(module, is_last=is_last):
                share = module(batch.to(processes.device)) / max(items, 1)
                processes.backward(share * processes.number)  # DDP averages over processes; we want the sum
            losses.add(share.detach(), batch, objective, items)
        # asked before the penalty, whose gradient would hide that the loss has none; one sync with a GPU
        has_signal = part is None or _has_gradient(trainable)
        if part is not None:
            processes.backward(part.penalty())  # after the exchange, since each process adds the same penalty
        loss = losses.mean()
        norm = processes.clip(trainable, max_grad_norm)  # also divides the gradients by the loss scale
        # before the optimizer's step: a bad gradient must not reach the weights
        guard.check_step(step, loss=loss, grad_norm=norm if has_signal else 0.0, items=items, batches=micro)
        lr = float(schedule.get_last_lr()[0])  # the rate of this step, read before the schedule moves on
        optimizer.step()
        if processes.has_skipped:  # an overflow: the schedule stays too, as in transformers' Trainer
            guard.check_scale(step, items=items, batches=micro)
        else:
            schedule.step()
        if part is not None:
            part.after_step(step)  # needs the gradients: before they are dropped
        optimizer.zero_grad(set_to_none=True)
        step_s = time.perf_counter() - start
        figures = (*meter.gib_of("step"), losses.by_source(), losses.kl())
        yield StepLog(step, loss, norm, lr, items, tokens / step_s, step_s, *figures)
        start = time.perf_counter()  # only now: evaluations and checkpoints between two steps do not count


class _StepLosses:
    """The loss of a step, and that of each source of its rows, over all processes."""

    def __init__(self, sources: Sequence[str], processes: Processes) -> None:
        self._sources, self._processes = sources, processes
        self._total = torch.zeros((), device=processes.device)
        # sums and counts; fp64, for the counts may be larger than fp32 holds exactly
        self._sums = torch.zeros((2, len(sources)), dtype=torch.float64, device=processes.device)
        self._is_known = len(sources) > 1
        # the divergences' sum and count, once there are some
        self._divergences: Tensor | None = None

    def add(self, share: Tensor, batch: Batch, objective: ObjectiveModule, items: int) -> None:
        """Add a batch's share of the step's mean loss, and its items' figures if the objective keeps them."""
        losses, divergences = objective.losses, objective.divergences
        if divergences is not None and losses is not None:
            share = losses.sum() / max(items, 1)  # without the divergences that the loss has too
            both = torch.stack((divergences.sum(), torch.full_like(divergences.sum(), len(divergences))))
            self._divergences = both if self._divergences is None else self._divergences + both
        self._total += share  # no .item() here: it would stall a GPU every micro-batch
        self._is_known = self._is_known and losses is not None
        if self._is_known and losses is not None:
            sources = batch.learned_sources().to(losses.device)
            both = torch.stack((losses.double(), torch.ones_like(losses, dtype=torch.float64)))
            self._sums.index_add_(1, sources, both)

    def mean(self) -> float:
        """Return the mean loss of the step."""
        return float(self._processes.total(self._total))

    def kl(self) -> float | None:
        """Return the mean divergence from the base per token that is kept near it; None if none is."""
        if self._divergences is None:
            return None
        total, count = self._processes.total(self._divergences).tolist()
        return float(total / count) if count else None

    def by_source(self) -> dict[str, float]:
        """Return the mean loss of each source that the step has rows of; empty if there is but one."""
        if not self._is_known:
            return {}
        totals, counts = self._processes.total(self._sums).tolist()
        found = zip(self._sources, totals, counts, strict=True)
        return {name: total / count for name, total, count in found if count}


def _has_gradient(weights: Sequence[nn.Parameter]) -> bool:
    """Return True if any number of the weights' gradients is not 0."""
    is_nonzero = [p.grad.any() for p in weights if p.grad is not None]
    if not is_nonzero:
        return False
    return bool(torch.stack(is_nonzero).any())


@torch.no_grad()
def mean_loss(objective: ObjectiveModule, batches: Sequence[Batch], processes: Processes) -> float:
    """Return the mean loss per learned token over all processes' batches, in evaluation mode."""
    was_training = objective.training
    objective.eval()
    total, items = 0.0, 0
    for batch in batches:
        with processes.autocast():
            total += float(objective(batch.to(processes.device)))
        items += objective.weight(batch)
    objective.train(was_training)
    processes.settle()
    sums = torch.tensor([total, items], dtype=torch.float64, device=processes.device)
    loss, count = processes.total(sums).tolist()
    return float(loss / max(count, 1))


def _count_tokens(
    processes: Processes, micro: Sequence[Batch], objective: ObjectiveModule
) -> tuple[int, int]:
    """Return the numbers of learned tokens and of all tokens of the step, over all processes."""
    mine: Tensor = torch.tensor(
        [sum(objective.weight(b) for b in micro), sum(len(b.input_ids) for b in micro)],
        device=processes.device,
    )
    items, tokens = processes.total(mine).tolist()
    return int(items), int(tokens)
