"""Stop a run at the first loss or gradient that is nan, infinite or 0, and name the layer and the row.

A healthy run pays nothing: the loop computes these figures anyway. Only a bad one starts the search, which
runs each row of the step again by itself, with hooks on every module.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from glmtune.data.batches import Batch
from glmtune.data.row import TrainingRow
from glmtune.errors import TrainingError
from glmtune.objectives.base import ObjectiveModule
from glmtune.processor import has_bf16
from glmtune.training.processes import Processes
from glmtune.training.sharding import own_part

RowsOf = Callable[[int], Sequence[Sequence[TrainingRow]]]
"""Returns the rows of this process's micro-batches of a step; called only when something is wrong."""
Search = Callable[[Batch], str | None]
"""Returns where in a batch of one row the trouble first shows; None if not in this row."""
Watch = Callable[[str, nn.Module, Any, Any], None]
"""A forward hook that is also given the module's name: of name, module, inputs and outputs."""

LEAST_SCALE = 1.0
"""Loss scale below which a run stops: the gradient overflows fp16 even without magnification, and halving the
scale further only loses small numbers. Source: DeepSpeed's `min_loss_scale`, at which it gives up too,
https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/runtime/fp16/loss_scaler.py."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Checks of the figures of steps and evaluations, which raise `TrainingError` in all processes alike.

    They use figures summed over all processes, so that all decide alike and none waits for another in vain.
    Each process searches its own rows, and all report what the first of them finds.
    """

    objective: ObjectiveModule
    processes: Processes
    lower_lr: float
    """The learning rate to suggest if the present one is too high."""
    is_rate_high: bool = False
    """True if the learning rate is above its method's default: then it is blamed before half precision is."""
    rows_of: RowsOf | None = None
    """Source of the rows' files and lines; without it, rows are named by their number in the step."""

    def check_step(
        self, step: int, *, loss: float, grad_norm: float, items: int, batches: Sequence[Batch]
    ) -> None:
        """Raise `TrainingError` for a bad loss or gradient; called before the optimizer changes the weights.

        Under loss scaling a gradient may overflow now and then: `check_scale` handles that.
        """
        # In this order: a bad loss makes every gradient bad, and a step without learned tokens has loss 0.
        if not math.isfinite(loss):
            self._stop(step, f"the loss is {loss}", batches, self._in_forward)
        if items == 0:
            words = "for no token is learned, first"
            self._stop(step, "the loss is exactly 0", batches, lambda _: words, hint=_GIVE_ANSWERS)
        if loss == 0:
            known = "these rows are known by heart: stop earlier (train.patience=3), or take more rows"
            hint = f"{known}{self._or_wider()}"
            self._stop(step, "the loss is exactly 0", batches, _find_known_row, hint=hint)
        if not math.isfinite(grad_norm) and self.processes.loss_scale is None:
            what = f"the gradient norm is {grad_norm}"
            self._stop(step, what, batches, partial(self._in_backward, items), items=items)
        if grad_norm == 0:
            start = "nothing that is trained reaches the loss: start from method=lora and its defaults"
            hint = f"{start}{self._or_wider()}"
            search = partial(self._where_it_ends, items)
            self._stop(step, "the gradient is exactly 0", batches, search, hint=hint)

    def check_scale(self, step: int, *, items: int, batches: Sequence[Batch]) -> None:
        """Raise `TrainingError` if loss scaling has skipped a step and the scale has become too small."""
        scale = self.processes.loss_scale
        if scale is not None and scale < LEAST_SCALE:
            what = f"the gradient overflows fp16 at every loss scale down to {2 * scale:g}"
            self._stop(step, what, batches, partial(self._in_backward, items), items=items)

    def check_evaluation(self, step: int, loss: float, *, batches: Sequence[Batch]) -> None:
        """Raise `TrainingError` for an evaluation loss that is nan or infinite; step 0 is before training."""
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
        """Search the rows of all processes, and raise `TrainingError` with the result.

        `items` is the number of learned tokens of the step if the search is for a gradient, else 0.
        """
        has_learned = step > 1 if has_learned is None else has_learned
        findings = self.processes.gather(self._search_rows(step, batches, search))
        where = next((words for words in findings if words), None)
        where = where or (self._find_largest(step, batches, items) if items else _NOWHERE)
        # a weight that is nan or infinite explains everything after it, so its hint replaces all others
        weights = list(self.objective.named_parameters())
        own = ((i, own_part(weight).detach()) for i, (_, weight) in enumerate(weights))
        broken = ((i, float(part[~torch.isfinite(part)][0])) for i, part in own if not _are_finite(part))
        # of a weight that is shared out, a part may be whole in one process and broken in another
        if found := [each for each in self.processes.gather(next(broken, None)) if each]:
            i, number = min(found, key=lambda each: each[0])
            name, weight = weights[i]
            where += f"; the weight {_shown(name)} itself holds {number}"
            if weight.requires_grad and has_learned:
                hint = f"a step too far broke it: train anew with {self._lower()}"
            elif weight.dtype == torch.float16 and not math.isnan(number):
                hint = f"it is too large for fp16: train anew with {self._wider(is_held=True)}"
            else:
                hint = "its file is damaged: copy the model from its source again"
        raise TrainingError(
            f"step {step}: {what}, {where}; checkpoints are left as they were",
            hint=hint or self._safe_settings(has_learned=has_learned),
        )

    def _search_rows(self, step: int, batches: Sequence[Batch], search: Search) -> str | None:
        """Return the first finding of `search` with its row, going row by row, without padding.

        A process with a finding goes on until all have one: every process must take part in every pass.
        """
        finding: str | None = None
        for where, row in self._rows(step, batches):
            words = search(row)
            finding = finding or (f"{words} at {where}" if words else None)
            if all(self.processes.gather(finding is not None)):
                break
        return finding

    def _find_largest(self, step: int, batches: Sequence[Batch], items: int) -> str:
        """Describe the largest gradient: even if all are finite, the square of their norm can overflow."""
        mine = (
            (float(gradient.abs().max()), f"the gradient of {_shown(name)} at {where}")
            for where, row in self._rows(step, batches)
            for name, gradient in self._gradients(row, items).items()
            if gradient is not None
        )
        size, words = max(self.processes.gather(max(mine, default=(0.0, "none"))))
        return f"of gradients that are finite row by row: the largest, {size:.1e}, is in {words}"

    def _rows(self, step: int, batches: Sequence[Batch]) -> Iterator[tuple[str, Batch]]:
        """Yield each of this process's rows as a batch of one, with its file and line.

        All processes yield the same number: one with fewer rows repeats its last.
        """
        rows = self.rows_of(step) if self.rows_of else None
        own_rows = [
            (rows[k][i].where if rows else f"row {i + 1} of micro-batch {k + 1}", row)
            for k, batch in enumerate(batches)
            for i, row in enumerate(batch.rows())
        ]
        for n in range(max(self.processes.gather(len(own_rows)))):
            where, row = own_rows[min(n, len(own_rows) - 1)]
            yield where, row.to(self.processes.device)

    def _safe_settings(self, *, has_learned: bool) -> str:
        """Return a hint with settings to paste. Before the first step, the learning rate is not to blame."""
        is_half = self.processes.precision != "fp32"
        if is_half and has_learned and self.is_rate_high:
            return f"train anew with {self._lower()}; if it comes to this again, with {self._wider()} too"
        if is_half:
            return f"train anew with {self._wider()}; if it learned well up to here, with {self._lower()}"
        if has_learned:
            return f"train anew with {self._lower()}"
        return "it does so before anything is learned: copy the model from its source again, or drop that row"

    def _lower(self) -> str:
        return f"train.lr={self.lower_lr:g}"

    def _wider(self, *, is_held: bool = False) -> str:
        """Return the settings of the next wider precision that the device has.

        `is_held`: what must be wider is the held weights too.
        """
        is_fp16 = self.processes.precision == "fp16"
        name = "bf16" if is_fp16 and has_bf16(self.processes.device) else "fp32"
        # fp32 is computed in over weights of any type; bf16 over fp16 would round them at every product
        held = f" dtype={name}" if is_held or name == "bf16" else ""
        return f"train.precision={name}{held}"

    def _or_wider(self) -> str:
        is_half = self.processes.precision != "fp32"
        return f"; or it is too small for half precision: {self._wider()}" if is_half else ""

    def _in_forward(self, batch: Batch) -> str | None:
        """Name the first module whose output is not finite; None if the row's loss is finite."""
        names: list[str] = []

        def look(name: str, module: nn.Module, inputs: object, outputs: object) -> None:
            if not names and not _are_finite(outputs):
                # A leaf with bad inputs did not make them, nor did another module: its parent's own code did.
                is_leaf = next(module.children(), None) is None
                is_given = is_leaf and not _are_finite(inputs)
                names.append(_shown(name.rpartition(".")[0] if is_given else name))

        with self._watched(look), self.processes.autocast(), torch.no_grad():
            loss = self.objective(batch)
        if torch.isfinite(loss):  # masked positions may be infinite without harm
            return None
        return f"first in {names[0] if names else 'the loss itself'}"

    def _in_backward(self, items: int, batch: Batch) -> str | None:
        where = self._find_gradient(batch, items, lambda gradient: not bool(torch.isfinite(gradient).all()))
        return f"first in {where}" if where else None

    def _where_it_ends(self, items: int, batch: Batch) -> str | None:
        where = self._find_gradient(batch, items, lambda gradient: not bool(gradient.any()))
        return f"it ends at {where}" if where else None

    def _find_gradient(self, batch: Batch, items: int, is_bad: Callable[[Tensor], bool]) -> str | None:
        """Name the first bad gradient on the way back from the loss: of a module's output, or of a weight."""
        bad: list[str] = []

        def look(name: str, _module: nn.Module, _inputs: object, outputs: object) -> None:
            def check(gradient: Tensor) -> None:
                if not bad and is_bad(gradient):
                    bad.append(f"the gradient of the output of {_shown(name)}")

            # hooks on tensors, which run in the order of the backward pass
            for tensor in _tensors(outputs):
                if tensor.requires_grad:
                    tensor.register_hook(check)  # type: ignore[no-untyped-call]

        with self._watched(look):
            gradients = self._gradients(batch, items)
        # No output was bad: then the weights' own gradients, the last layer's first. None: the loss does not
        # depend on the weight.
        for name, gradient in reversed(gradients.items()):
            if not bad and is_bad(torch.zeros(()) if gradient is None else gradient):
                bad.append(f"the gradient of {_shown(name)}")
        return bad[0] if bad else None

    def _gradients(self, batch: Batch, items: int) -> dict[str, Tensor | None]:
        """Compute the gradients of one row again, by the weights' names, on the scale of the step's own.

        The step's own, in `p.grad`, are of all rows, and clipping by a bad norm has spoiled them.
        """
        trainable = {name: p for name, p in self.objective.named_parameters() if p.requires_grad}
        loss_scale = self.processes.loss_scale
        # the same factors as in the loop, or an overflow would not show again
        factor = self.processes.number * (1.0 if loss_scale is None else max(loss_scale, LEAST_SCALE))
        with self.processes.autocast(), self.objective.passes():
            loss = self.objective(batch) * factor / items
            if not any(isinstance(weight, DTensor) for weight in trainable.values()):
                gradients = torch.autograd.grad(loss, [*trainable.values()], allow_unused=True)
                return dict(zip(trainable, gradients, strict=True))
            # FSDP2 puts gradients into the weights alone, each process's part of them: the step's own go
            for weight in trainable.values():
                weight.grad = None
            loss.backward()
        return {name: None if p.grad is None else own_part(p.grad) for name, p in trainable.items()}

    @contextmanager
    def _watched(self, watch: Watch) -> Iterator[None]:
        """Call `watch` after each module's forward pass inside the `with` block, children before parents."""
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


def _find_known_row(batch: Batch) -> str | None:
    is_learned = bool((batch.labels != -100).any())
    return "the output layer gives every learned token a probability of 1, first" if is_learned else None


def _are_finite(value: object) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(value))


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a module's inputs or outputs, however they are nested."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict | tuple | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _shown(name: str) -> str:
    """Return a module's or weight's name as in the model, without the objective's and PEFT's prefixes."""
    return name.removeprefix("model.").removeprefix("base_model.model.") or "the loss"
