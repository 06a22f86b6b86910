"""The processes that train together: who is who, their exchange, and the arithmetic of their passes.

The one face of accelerate: nothing else here imports it.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.optim import Optimizer

Value = TypeVar("Value")


class Processes:
    """This process among those that `torchrun` started; one that is alone has nothing to exchange.

    What exchanges anything is to be called by all of them.
    """

    def __init__(self, device: torch.device | str = "cpu", *, precision: str = "fp32") -> None:
        """`device`: its kind, `cpu` or `cuda`; each process takes a card of its own. `precision`: fp32, bf16
        or fp16, with loss scaling.
        """
        self._is_on_cpu = torch.device(device).type == "cpu"
        self.precision = precision
        """Of forward and backward passes: fp32, bf16 or fp16. Settled before the first of them."""
        state = PartialState(cpu=self._is_on_cpu)
        self.rank: int = state.process_index
        """From 0."""
        self.number: int = state.num_processes
        self.device: torch.device = state.device

    @cached_property
    def _accelerator(self) -> Accelerator:
        AcceleratorState._reset_state()  # an earlier run of this program may have had another precision
        name = "no" if self.precision == "fp32" else self.precision
        return Accelerator(mixed_precision=name, cpu=self._is_on_cpu)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of all processes' values."""
        found: Tensor = self._accelerator.reduce(value, "sum")
        return found

    def is_any(self, said: bool) -> bool:
        """Whether any process says yes."""
        return bool(self.total(torch.tensor(float(said), device=self.device)))

    def gather(self, value: Value) -> list[Value]:
        """Each process's value, by rank."""
        found: list[Value] = gather_object([value])
        return found

    def firsts(self, value: Value) -> Value:
        """The first process's value, the same for all."""
        shared: list[Value] = broadcast_object_list([value])
        return shared[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over all processes."""
        if self.number == 1:
            return module
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def prepare(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer as it is to be stepped: loss scaling leaves out steps that overflow."""
        prepared: Optimizer = self._accelerator.prepare_optimizer(optimizer)
        return prepared

    def autocast(self) -> AbstractContextManager[None]:
        """Inside, forward passes are in the precision."""
        found: AbstractContextManager[None] = self._accelerator.autocast()
        return found

    def exchanging(self, module: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch: gradients are exchanged once a step, in the backward pass of its last."""
        if is_last:
            return nullcontext()
        held_back: AbstractContextManager[None] = self._accelerator.no_sync(module)
        return held_back

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss, scaled where losses are."""
        self._accelerator.backward(loss)

    def clip(self, weights: Iterable[nn.Parameter], most: float) -> float:
        """Bring the gradients' norm down to `most`, 0 for any; return what it was. Undoes loss scaling."""
        return float(self._accelerator.clip_grad_norm_(weights, most or math.inf))

    @property
    def has_skipped(self) -> bool:
        """Whether loss scaling has left out the last step."""
        return bool(self._accelerator.optimizer_step_was_skipped)

    @property
    def loss_scale(self) -> float | None:
        """What losses are multiplied by; None without loss scaling."""
        scaler = self._accelerator.scaler
        return None if scaler is None else float(scaler.get_scale())

    def scaler_state(self) -> dict[str, Any] | None:
        """Of loss scaling; None without it."""
        scaler = self._accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def restore_scaler(self, state: Mapping[str, Any]) -> None:
        """Put back what `scaler_state` gave."""
        self._accelerator.scaler.load_state_dict(state)
