"""The processes that train together: ranks, exchange of values and gradients, mixed precision.

This is the only module that imports accelerate.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import cached_property
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from glmtune.errors import ConfigError
from glmtune.recipe.distributed import Ddp, DeepSpeed, EngineSettings
from glmtune.run_files import cannot_write
from glmtune.training import heartbeat, sharding
from glmtune.training.zero import Keep, ZeroOptimizer, ZeroWeights

Item = TypeVar("Item")
Value = TypeVar("Value")


class Processes:
    """This process among those that `torchrun` started, or this process alone.

    All processes must call the methods that exchange values: `total`, `is_any`, `gather`, `firsts`, `wait`,
    `wait_for_first`.
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
        self._root: nn.Module | None = None
        self._zero: ZeroOptimizer | None = None
        self._is_joined = False
        self._keep: Keep = sharding.in_main_memory

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

    @property
    def own_card(self) -> str | None:
        """The device that this process has for itself; None for a single one, which may have any."""
        return str(self.device) if self.number > 1 else None

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

    def wait_for_first(self) -> None:
        """Wait until the first process has come here, for as long as it lives: it may write for hours."""
        if self._heartbeat:
            self._heartbeat.wait_for_first()
            PartialState().wait_for_everyone()  # else the first could end before the last one has seen it

    @property
    def sharing(self) -> "Processes | Alone":
        """The processes among which rows are dealt out, for passes without gradients.

        Where each holds a part of the weights, all must take part in every pass: each has all rows.
        """
        return self if self._root is None else Alone(self)

    @property
    def _weights(self) -> ZeroWeights | None:
        return self._zero if isinstance(self._zero, ZeroWeights) else None

    @property
    def shared_by(self) -> int:
        """Number of processes that a weight is shared over: 1 where each holds all of it."""
        return self.number if self.engine.shares_weights else 1

    @property
    def state_shared_by(self) -> int:
        """Number of processes that gradients and means are shared over, where each holds all weights."""
        return self.number if self.engine.shares_state and not self.engine.shares_weights else 1

    def share(
        self, module: nn.Module, build_optimizer: Callable[[], Optimizer], *, max_norm: float = 0.0
    ) -> Optimizer:
        """Share the weights of an objective over the processes, in place; return the optimizer over them.

        For an engine that does that. `max_norm` as in `wrap`.
        """
        self._root = module
        if not isinstance(self.engine, DeepSpeed):
            sharding.share_weights(module, self.device, self.number)
            return build_optimizer()
        optimizer = build_optimizer()  # before: it looks at shapes, which parts have not
        self._zero = ZeroWeights(module, optimizer, self.engine, self.device, max_norm)
        return optimizer

    def joined(self) -> AbstractContextManager[None]:
        """Return a context in which parts of the model can be called, not only the objective.

        All processes must enter it, and make the same passes within it.
        """
        return nullcontext() if self._root is None else self._joining(self._root)

    @contextmanager
    def _joining(self, root: nn.Module) -> Iterator[None]:
        before, self._is_joined = self._is_joined, True
        try:
            with (self._weights or sharding).outer_weights(root):
                yield
        finally:
            self._is_joined = before

    def whole(self, *, is_changed: bool = False) -> AbstractContextManager[None]:
        """Return a context in which the trained weights are whole in the first process, to be saved.

        With `is_changed` to be filled: all go on with what is in them at its end. All processes must enter
        it.
        """
        if self._root is None:
            return nullcontext()
        sharer = self._weights or sharding
        keep = self._keep if self.is_main else None
        return sharer.whole_trained(self._root, keep=keep, is_changed=is_changed)

    @contextmanager
    def gathering_in(self, folder: Path) -> Iterator[None]:
        """Inside, the weights and means that the first process puts together lie in files there, mapped.

        One of them at a time is in main memory, so that it need not hold a whole model. For an engine that
        shares them; the files are removed at the end. Raises `OutputError`.
        """
        if not (self.is_main and self.engine.shares_state):
            yield
            return
        names = count()

        def keep(whole: Tensor) -> Tensor:
            flat, path = whole.detach().cpu().contiguous().flatten(), Path(desk, str(next(names)))
            try:
                path.write_bytes(flat.view(torch.uint8).numpy().data)
            except OSError as err:
                raise cannot_write(path, err) from err
            # shared: also numbers that are put into it later lie in the file
            mapped = torch.from_file(str(path), shared=True, size=flat.numel(), dtype=flat.dtype)
            return mapped.view(whole.shape)

        # a name of those that a killed process leaves behind, and that are swept
        with TemporaryDirectory(
            prefix=".", suffix=".partial", dir=folder, ignore_cleanup_errors=True
        ) as desk:
            self._keep = keep
            try:
                yield
            finally:
                self._keep = sharding.in_main_memory

    def settle(self) -> None:
        """Give back the shared weights that passes without gradients have left whole."""
        if self._root is not None and not self._is_joined:
            (self._weights or sharding).settle(self._root)

    def trained(self, module: nn.Module) -> list[nn.Parameter]:
        """Return the weights of a module that are trained, as the optimizer has them."""
        self.settle()
        return [p for p in module.parameters() if p.requires_grad]

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return an optimizer's state with whole tensors, in the first process; all must call it."""
        if self._zero is not None:
            return self._zero.whole_state(keep=self._keep if self.is_main else None)
        state: dict[str, Any] = optimizer.state_dict()
        if self._root is None:
            return state
        return sharding.whole_state(state, keep=self._keep if self.is_main else None)

    def restore_optimizer(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Restore the result of `optimizer_state`."""
        if self._zero is not None:
            self._zero.restore(state)
            return
        if self._root is not None:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = sharding.shared_state(state, weights)
        optimizer.load_state_dict(dict(state))
        for values in optimizer.state.values():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.is_cpu and not isinstance(value, DTensor):
                    values[name] = value.clone()  # torch takes it as it is: of a file that is mapped

    def wrap(
        self, module: nn.Module, optimizer: Optimizer, *, max_norm: float = 0.0
    ) -> tuple[nn.Module, Optimizer]:
        """Return a module whose gradients are averaged over all processes, and the optimizer to step.

        Under loss scaling it skips steps whose gradients overflow. `max_norm`: bound of the gradients' norm,
        as `clip` has it; 0 for none.
        """
        if self._weights:
            self._weights.zero_grad()  # of passes that measured
        elif isinstance(self.engine, DeepSpeed):
            self._zero = ZeroOptimizer(module, optimizer, self.engine, self.device, max_norm)
        if self._zero:
            return self._zero.engine, cast("Optimizer", self._zero)
        # DistributedDataParallel would cost a single process time and memory for nothing
        if self.number > 1 and self._root is None:
            module = self._accelerator.prepare_model(module)
        return module, self.prepare(optimizer)

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
        if self._zero is not None:
            self._zero.exchanging(is_last=is_last)
            return nullcontext()
        # DistributedDataParallel would exchange in each backward pass, though only the step's sum is needed;
        # shared weights' gradients are exchanged in each, or every process would hold all of them
        if is_last or self._root is not None:
            return nullcontext()
        without_exchange: AbstractContextManager[None] = self._accelerator.no_sync(module)
        return without_exchange

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to the weights', multiplied by the loss scale if there is one."""
        if self._zero is not None:
            self._zero.backward(loss)
        else:
            self._accelerator.backward(loss)

    def clip(self, weights: Iterable[nn.Parameter], max_norm: float) -> float:
        """Undo loss scaling, clip the gradients' norm to `max_norm` (0: no limit), return the norm before."""
        if self._zero is not None:  # which clips with the bound that it was given
            return self._zero.norm()
        # an infinite bound and not no call: accelerate undoes loss scaling in it
        norm = self._accelerator.clip_grad_norm_(weights, max_norm or math.inf)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

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


class Alone:
    """One of several processes that each have all rows, and make the same passes."""

    rank, number = 0, 1

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.device, self.is_main = processes.device, processes.is_main

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which forward passes compute in the run's precision."""
        return self._processes.autocast()

    def gather(self, value: Value) -> list[Value]:
        """Return the value, which all have."""
        return [value]

    def firsts(self, value: Value) -> Value:
        """Return the first process's value in all processes."""
        return self._processes.firsts(value)


def deal_out(
    processes: Processes | Alone, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Value]]
) -> list[Value]:
    """Return the result of each item in order: each process works on a share, and all get all."""
    shares = processes.gather(work(items[processes.rank :: processes.number]))
    # dealt out as cards are: item 0 to the first process, item 1 to the second
    return [shares[i % processes.number][i // processes.number] for i in range(len(items))]


def _require_card() -> None:
    """Raise `ConfigError` if this process has no card of its own."""
    own, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= cards:
        raise ConfigError(
            f"--nproc: process {own} of this machine has no card: torch sees {cards}",
            hint=f"at most {cards} processes; or device=cpu",
        )
