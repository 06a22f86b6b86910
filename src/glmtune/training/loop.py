"""The training loop: micro-batches -> token-weighted gradient -> clip -> step. One function."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from glmtune.data.batches import Batch
from glmtune.objectives.base import ObjectiveModule
from glmtune.training.guard import Guard
from glmtune.training.memory import peak_memory_gib
from glmtune.training.processes import Processes


@dataclass(frozen=True, slots=True)
class StepLog:
    """One optimizer step, as written to metrics.jsonl."""

    step: int
    loss: float
    """Mean loss per learned token over the whole step, all micro-batches, all processes."""
    grad_norm: float
    """Before clipping; not finite where loss scaling has skipped the step."""
    lr: float
    tokens: int
    """Learned tokens of the step, all processes."""
    tokens_per_s: float
    """Tokens that went through the model per second, prompts included, all processes."""
    step_s: float
    peak_memory_gib: float
    """Highest so far: of the GPU's allocations, or of this process's memory on a CPU."""


class StepPart(Protocol):
    """What a method does within each step, besides having weights to train."""

    def penalty(self) -> Tensor:
        """Added to the mean loss once a step, of the weights alone, equal on every process. Not logged."""

    def after_step(self, step: int) -> None:
        """Called when the optimizer has changed the weights and their gradients are still there."""


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
) -> Iterator[StepLog]:
    """Train and yield one log per step; the caller decides when to print, evaluate and save.

    `steps` gives (step number, this process's micro-batches). The sum of losses is divided once by the
    learned tokens of the whole step, so 8 micro-batches of 1 equal 1 micro-batch of 8, and two processes
    equal one, even when target lengths differ. `module` is the objective, or the objective inside
    DistributedDataParallel; it and `optimizer` were prepared by `processes`.
    A step that loss scaling skips leaves the schedule where it is, as transformers' Trainer does.
    Raises `TrainingError` before the optimizer's step if loss or gradient is not finite or exactly 0; `guard`
    knows how to name the rows.
    """
    guard = guard or Guard(objective, processes, lower_lr=float(schedule.base_lrs[0]) / 10)
    trained = [p for p in module.parameters() if p.requires_grad]
    for step, micro in steps:
        start = time.perf_counter()
        module.train()
        items, tokens = _totals(processes, micro, objective)
        total = torch.zeros((), device=processes.device)
        for i, batch in enumerate(micro):
            with processes.autocast(), processes.exchanging(module, is_last=i == len(micro) - 1):
                loss = module(batch.to(processes.device)) / max(items, 1)
                total += loss.detach()  # no .item() here: it would stall a GPU every micro-batch
                processes.backward(loss * processes.number)  # DDP averages over processes
        # asked before the penalty, whose gradient would hide that the loss has none
        has_signal = part is None or _is_any(p.grad for p in trained)
        if part is not None:  # after the processes' exchange: each adds the same
            processes.backward(part.penalty())
        mean_loss = float(processes.total(total))
        norm = processes.clip(trained, max_grad_norm)
        learned = norm if has_signal else 0.0
        guard.check_step(step, loss=mean_loss, grad_norm=learned, items=items, batches=micro)
        lr = float(schedule.get_last_lr()[0])
        optimizer.step()
        if processes.has_skipped:
            guard.check_scale(step, items=items, batches=micro)
        else:
            schedule.step()
        if part is not None:
            part.after_step(step)
        optimizer.zero_grad(set_to_none=True)
        step_s = time.perf_counter() - start
        peak = peak_memory_gib(processes.device)
        yield StepLog(step, mean_loss, norm, lr, items, tokens / step_s, step_s, peak)


@torch.no_grad()
def mean_loss(objective: ObjectiveModule, batches: Sequence[Batch], processes: Processes) -> float:
    """Mean loss per learned token over this process's batches and all other processes'."""
    was_training = objective.training
    objective.eval()
    total, items = 0.0, 0
    for batch in batches:
        with processes.autocast():
            total += float(objective(batch.to(processes.device)))
        items += objective.weight(batch)
    objective.train(was_training)
    sums = torch.tensor([total, items], dtype=torch.float64, device=processes.device)
    loss, count = processes.total(sums).tolist()
    return float(loss / max(count, 1))


def _totals(processes: Processes, micro: Sequence[Batch], objective: ObjectiveModule) -> tuple[int, int]:
    """Learned tokens and all tokens of the step, over all processes."""
    mine: Tensor = torch.tensor(
        [sum(objective.weight(b) for b in micro), sum(len(b.input_ids) for b in micro)],
        device=processes.device,
    )
    items, tokens = processes.total(mine).tolist()
    return int(items), int(tokens)


def _is_any(gradients: Iterable[Tensor | None]) -> bool:
    """Whether any number in them is not 0; asks a GPU once. Loss scaling makes no difference to that."""
    found = [gradient.any() for gradient in gradients if gradient is not None]
    return bool(torch.stack(found).any()) if found else False
