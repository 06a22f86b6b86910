"""The processes that train together: ranks, exchange of values and gradients, mixed precision.

This is the only module that imports accelerate.
"""

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.optim import Optimizer

from glmtune.errors import ConfigError
from glmtune.recipe.distributed import Ddp, EngineSettings
from glmtune.training import heartbeat

Value = TypeVar("Value")


class Processes:
    """This process among those that `torchrun` started, or this process alone.

    All processes must call the methods that exchange values: `total`, `is_any`, `gather`, `firsts`, `wait`.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        precision: str = "fp32",
        engine: EngineSettings | None = None,
    ) -> None:
        """Join the processes on `cpu` or `cuda`, where each takes a GPU of its own.

        `precision` is fp32, bf16, or fp16 with loss scaling; `engine` shares the training (default: DDP).
        Raises `ConfigError` for more processes than cards.
        """
        self._is_on_cpu = torch.device(device).type == "cpu"
        self.precision = precision
        """Type of forward and backward passes: fp32, bf16 or fp16. Fixed from the first pass on."""
        self.engine = engine or Ddp()
        if not self._is_on_cpu:
            _require_card()
        state = PartialState(cpu=self._is_on_cpu, timeout=timedelta(seconds=self.engine.timeout_s))
        self.rank: int = state.process_index
        """Number of this process, from 0."""
        self.number: int = state.num_processes
        self.device: torch.device = state.device
        self._heartbeat = heartbeat.begin(self.rank, self.number) if self.number > 1 else None

    @cached_property
    def _accelerator(self) -> Accelerator:
        # accelerate keeps one state for the whole program; an earlier run may have had another precision
        AcceleratorState._reset_state()
        name = "no" if self.precision == "fp32" else self.precision
        return Accelerator(mixed_precision=name, cpu=self._is_on_cpu)

    @property
    def is_main(self) -> bool:
        """True if this process writes the run's files."""
        return self.rank == 0

    def enter(self, place: str) -> None:
        """Note the part of the run that this process is in from here on, `step 7`: others may wait for it."""
        if self._heartbeat:
            self._heartbeat.place = place

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of all processes' values."""
        summed: Tensor = self._accelerator.reduce(value, "sum")
        return summed

    def is_any(self, value: bool) -> bool:
        """Return True if the value is True in any process."""
        return bool(self.total(torch.tensor(float(value), device=self.device)))

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""
        gathered: list[Value] = gather_object([value])
        return gathered

    def firsts(self, value: Value) -> Value:
        """Return the first process's value in all processes."""
        shared: list[Value] = broadcast_object_list([value])
        return shared[0]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self._accelerator.wait_for_everyone()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return a module whose gradients are averaged over all processes."""
        if self.number == 1:  # DistributedDataParallel would cost time and memory for nothing
            return module
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def prepare(self, optimizer: Optimizer) -> Optimizer:
        """Return the optimizer to step; under loss scaling it skips steps whose gradients overflow."""
        prepared: Optimizer = self._accelerator.prepare_optimizer(optimizer)
        return prepared

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which forward passes compute in `precision`."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def exchanging(self, module: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """Return a context for one micro-batch that exchanges gradients only in the last one of a step."""
        # DistributedDataParallel would exchange in each backward pass, though only the step's sum is needed
        if is_last:
            return nullcontext()
        without_exchange: AbstractContextManager[None] = self._accelerator.no_sync(module)
        return without_exchange

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to the weights', multiplied by the loss scale if there is one."""
        self._accelerator.backward(loss)

    def clip(self, weights: Iterable[nn.Parameter], max_norm: float) -> float:
        """Undo loss scaling, clip the gradients' norm to `max_norm` (0: no limit), return the norm before."""
        return float(self._accelerator.clip_grad_norm_(weights, max_norm or math.inf))

    @property
    def has_skipped(self) -> bool:
        """True if loss scaling has skipped the last optimizer step."""
        return bool(self._accelerator.optimizer_step_was_skipped)

    @property
    def loss_scale(self) -> float | None:
        """Factor of the losses; None without loss scaling."""
        scaler = self._accelerator.scaler
        return None if scaler is None else float(scaler.get_scale())

    def scaler_state(self) -> dict[str, Any] | None:
        """Return the state of loss scaling; None without loss scaling."""
        scaler = self._accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def restore_scaler(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `scaler_state`."""
        self._accelerator.scaler.load_state_dict(state)


def _require_card() -> None:
    """Raise `ConfigError` if this process has no card of its own."""
    own, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= cards:
        raise ConfigError(
            f"--nproc: process {own} of this machine has no card: torch sees {cards}",
            hint=f"at most {cards} processes; or device=cpu",
        )
