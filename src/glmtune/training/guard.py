"""The guard against silent failure: at the first figure that no training goes on from, the run stops and says
which layer and which row it came from.

A healthy run pays nothing for it: the figures are there anyway, and only a wrong one starts the search.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from glmtune.data.batches import Batch
from glmtune.data.row import TrainingRow
from glmtune.errors import TrainingError
from glmtune.objectives.base import ObjectiveModule
from glmtune.processor import has_bf16
from glmtune.training.processes import Processes

RowsOf = Callable[[int], Sequence[Sequence[TrainingRow]]]
"""The rows that this process's batches of a step were made of; asked for only when something is wrong."""
Search = Callable[[Batch], str | None]
"""Where in a batch of one row the trouble first shows; None if not in this row."""
Watch = Callable[[str, nn.Module, Any, Any], None]
"""Sees a module's name, the module, its inputs and its outputs."""

LEAST_SCALE = 1.0
"""Below this, a gradient overflows fp16 even unmagnified, and halving the scale further only loses its small
parts. Source: DeepSpeed's `min_loss_scale`, at which it too gives up,
https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/fp16/loss_scaler.py."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Checks the figures of steps and evaluations; raises `TrainingError` in all processes alike.

    It decides by figures summed over all processes, so none waits for another in vain. Each searches its own
    rows, and all tell what the first of them found.
    """

    objective: ObjectiveModule
    processes: Processes
    lower_lr: float
    """The learning rate to offer where the one in use is too high."""
    is_rate_high: bool = False
    """Whether the rate in use is above its method's: then it is to blame before half precision is."""
    rows_of: RowsOf | None = None
    """Without it, a row is named by its number in the step."""

    def check_step(
        self, step: int, *, loss: float, grad_norm: float, items: int, batches: Sequence[Batch]
    ) -> None:
        """Before the optimizer's step, so that the weights are still good.

        A gradient that overflows under loss scaling is expected now and then: `check_scale` sees to those.
        """
        if not math.isfinite(loss):
            self._stop(step, f"the loss is {loss}", batches, self._in_forward)
        if items == 0:
            self._stop(step, "the loss is exactly 0", batches, _no_token, hint=_GIVE_ANSWERS)
        if loss == 0:
            self._stop(step, "the loss is exactly 0", batches, _all_known, hint=self._known_hint())
        if not math.isfinite(grad_norm) and self.processes.loss_scale is None:
            what = f"the gradient norm is {grad_norm}"
            self._stop(step, what, batches, partial(self._in_backward, items), items=items)
        if grad_norm == 0:
            hint = self._no_gradient_hint()
            search = partial(self._where_it_ends, items)
            self._stop(step, "the gradient is exactly 0", batches, search, hint=hint)

    def check_scale(self, step: int, *, items: int, batches: Sequence[Batch]) -> None:
        """After a step that loss scaling has skipped."""
        scale = self.processes.loss_scale
        if scale is not None and scale < LEAST_SCALE:
            what = f"the gradient overflows fp16 at every loss scale down to {2 * scale:g}"
            self._stop(step, what, batches, partial(self._in_backward, items), items=items)

    def check_evaluation(self, step: int, loss: float, *, batches: Sequence[Batch]) -> None:
        """After an evaluation at a step; 0 is before the first."""
        if not math.isfinite(loss):
            self.objective.eval()
            what = f"the evaluation loss is {loss}"
            self._stop(step, what, batches, self._in_forward, has_learned=step > 0)

    def _stop(
        self,
        step: int,
        what: str,
        batches: Sequence[Batch],
        search: Search,
        *,
        hint: str = "",
        has_learned: bool | None = None,
        items: int = 0,
    ) -> NoReturn:
        """`items`, the learned tokens of the step, where it is a gradient that is searched for."""
        has_learned = step > 1 if has_learned is None else has_learned
        found = self.processes.gather(self._first(step, batches, search))
        where = next((words for words in found if words), None)
        where = where or (self._largest(step, batches, items) if items else _NOWHERE)
        broken = _broken_weight(self.objective)
        if broken:
            name, weight = broken
            where += f"; the weight {name} itself holds {float(_odd(weight)[0])}"
            hint = self._broken_hint(weight, has_learned=has_learned)
        raise TrainingError(
            f"step {step}: {what}, {where}; checkpoints are left as they were",
            hint=hint or self._safe_settings(has_learned=has_learned),
        )

    def _first(self, step: int, batches: Sequence[Batch], search: Search) -> str | None:
        """What `search` finds, and in which row, going row by row, without padding.

        A process that has found something goes on until all have: every process takes part in every pass.
        """
        found: str | None = None
        for where, row in self._rows(step, batches):
            words = search(row)
            found = found or (f"{words} at {where}" if words else None)
            if all(self.processes.gather(found is not None)):
                break
        return found

    def _largest(self, step: int, batches: Sequence[Batch], items: int) -> str:
        """Where the largest gradient is: of finite ones too, the square of the norm can overflow."""
        mine = (
            (float(gradient.abs().max()), f"the gradient of {_shown(name)} at {where}")
            for where, row in self._rows(step, batches)
            for name, gradient in self._gradients(row, items).items()
            if gradient is not None
        )
        size, words = max(self.processes.gather(max(mine, default=(0.0, "none"))))
        return f"of gradients that are finite row by row: the largest, {size:.1e}, is in {words}"

    def _rows(self, step: int, batches: Sequence[Batch]) -> Iterator[tuple[str, Batch]]:
        """Each of this process's rows as a batch of its own, with its place; the last again while others have
        more.
        """
        rows = self.rows_of(step) if self.rows_of else None
        found = [
            (rows[k][i].where if rows else f"row {i + 1} of micro-batch {k + 1}", row)
            for k, batch in enumerate(batches)
            for i, row in enumerate(batch.rows())
        ]
        for n in range(max(self.processes.gather(len(found)))):
            where, row = found[min(n, len(found) - 1)]
            yield where, row.to(self.processes.device)

    def _broken_hint(self, weight: Tensor, *, has_learned: bool) -> str:
        if weight.requires_grad and has_learned:
            return f"a step too far broke it: train anew with {self._lower()}"
        if weight.dtype == torch.float16 and not bool(_odd(weight).isnan().any()):
            return f"it is too large for fp16: train anew with {self._precision()}"
        return "its file is damaged: copy the model from its source again"

    def _safe_settings(self, *, has_learned: bool) -> str:
        """Overrides to paste. Before anything was learned, no learning rate is to blame."""
        is_half = self.processes.precision != "fp32"
        if is_half and has_learned and self.is_rate_high:
            return f"train anew with {self._lower()}; if it comes to this again, with {self._precision()} too"
        if is_half:
            return f"train anew with {self._precision()}; if it learned well up to here, with {self._lower()}"
        if has_learned:
            return f"train anew with {self._lower()}"
        return "it does so before anything is learned: copy the model from its source again, or drop that row"

    def _lower(self) -> str:
        return f"train.lr={self.lower_lr:g}"

    def _precision(self) -> str:
        is_fp16 = self.processes.precision == "fp16"
        name = "bf16" if is_fp16 and has_bf16(self.processes.device) else "fp32"
        return f"train.precision={name} dtype={name}"

    def _known_hint(self) -> str:
        return (
            f"these rows are known by heart: stop earlier (train.patience=3), or take more rows{self._or()}"
        )

    def _no_gradient_hint(self) -> str:
        return (
            f"nothing that is trained reaches the loss: start from method=lora and its defaults{self._or()}"
        )

    def _or(self) -> str:
        is_half = self.processes.precision != "fp32"
        return f"; or it is too small for half precision: {self._precision()}" if is_half else ""

    def _in_forward(self, batch: Batch) -> str | None:
        """The first module whose output is not finite, where the row's loss is not."""
        found: list[str] = []

        def look(name: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
            if not found and not _are_finite(outputs):
                # a layer that is given nonsense is not the one that made it: what its parent does is
                is_leaf = next(module.children(), None) is None
                is_given = is_leaf and not _are_finite(inputs)
                found.append(_shown(name.rpartition(".")[0] if is_given else name))

        with self._watched(look), self.processes.autocast(), torch.no_grad():
            loss = self.objective(batch)
        if torch.isfinite(loss):
            return None
        return f"first in {found[0] if found else 'the loss itself'}"

    def _in_backward(self, items: int, batch: Batch) -> str | None:
        where = self._gradient(batch, items, lambda gradient: not bool(torch.isfinite(gradient).all()))
        return f"first in {where}" if where else None

    def _where_it_ends(self, items: int, batch: Batch) -> str | None:
        where = self._gradient(batch, items, lambda gradient: not bool(gradient.any()))
        return f"it ends at {where}" if where else None

    def _gradient(self, batch: Batch, items: int, is_bad: Callable[[Tensor], bool]) -> str | None:
        """The first place on the way back from the loss where the gradient is bad: an output, or a weight."""
        found: list[str] = []

        def look(name: str, _module: nn.Module, _inputs: Any, outputs: Any) -> None:
            def meet(gradient: Tensor) -> None:
                if not found and is_bad(gradient):
                    found.append(f"the gradient of the output of {_shown(name)}")

            for tensor in _tensors(outputs):
                if tensor.requires_grad:
                    tensor.register_hook(meet)  # type: ignore[no-untyped-call]

        with self._watched(look):
            gradients = self._gradients(batch, items)
        for name, gradient in reversed(gradients.items()):
            if not found and is_bad(torch.zeros(()) if gradient is None else gradient):
                found.append(f"the gradient of {_shown(name)}")
        return found[0] if found else None

    def _gradients(self, batch: Batch, items: int) -> dict[str, Tensor | None]:
        """The gradients by the weights' names, taken anew, as large as in the step but apart from its own.

        Those have been clipped by what is wrong.
        """
        trained = {name: p for name, p in self.objective.named_parameters() if p.requires_grad}
        with self.processes.autocast():
            loss = self.objective(batch) * self._scale() / items
            gradients = torch.autograd.grad(loss, [*trained.values()], allow_unused=True)
        return dict(zip(trained, gradients, strict=True))

    def _scale(self) -> float:
        """What the loop multiplies a loss by."""
        scale = self.processes.loss_scale
        return self.processes.number * (1.0 if scale is None else max(scale, LEAST_SCALE))

    @contextmanager
    def _watched(self, watch: Watch) -> Iterator[None]:
        """Inside, `watch` is called after each module's forward pass, a part before what it is a part of."""
        handles = [
            part.register_forward_hook(partial(watch, name)) for name, part in self.objective.named_modules()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


_NOWHERE = "in no row when it was run once more by itself"
_GIVE_ANSWERS = (
    "give these rows answers to learn: data.loss=all_turns, or other columns (data.response_column=...)"
)


def _no_token(_: Batch) -> str:
    return "for no token is learned, first"


def _all_known(batch: Batch) -> str | None:
    is_learned = bool((batch.labels != -100).any())
    return "the output layer gives every learned token a probability of 1, first" if is_learned else None


def _broken_weight(module: nn.Module) -> tuple[str, Tensor] | None:
    """The first weight that is not finite by itself."""
    for name, weight in module.named_parameters():
        if not _are_finite(weight):
            return _shown(name), weight
    return None


def _odd(weight: Tensor) -> Tensor:
    """The numbers in it that are none."""
    return weight.detach()[~torch.isfinite(weight)]


def _are_finite(value: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a module's inputs or outputs."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict | tuple | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _shown(name: str) -> str:
    """A module's or weight's name in the model's own words, without the objective and PEFT around it."""
    return name.removeprefix("model.").removeprefix("base_model.model.") or "the loss"
