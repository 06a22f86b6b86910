"""The memory of a training step, measured on a few short rows before step 1 and carried on to the longest.

A process on a CPU that runs out of memory is killed without an exception, so nothing long is tried there.
T: tokens of a micro-batch, M: tokens of its longest row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from glmtune.data.batches import Batch, collate
from glmtune.data.row import TrainingRow
from glmtune.models.recomputing import layers_of
from glmtune.objectives.base import ObjectiveModule
from glmtune.objectives.sft import CHUNK_LOGITS
from glmtune.training.allocations import ResidentMeter, meter_of
from glmtune.training.processes import Processes

PROBED_TOKENS = 64
"""Tokens of the short row; three passes are made, of 1, 2 and 2 times as many."""
BYTES_PER_LOGIT = 16
"""Bytes per logit of a chunk: the logits, their fp32, the softmax kept for the gradient, and the gradient."""
PROBED_LABELS = 2
"""Learned tokens of the short row: the memory of logits does not grow as tokens do, so it is added apart."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes that grow with a micro-batch, as one short row, two of it, and a row twice as long show."""

    fixed: float
    per_token: float
    per_longest: float = 0.0
    """Bytes for each token of the longest row: of what is alive for one row at a time."""
    per_pair: float = 0.0
    """Bytes for each pair of tokens of a row: of scores or masks of attention that are kept for all rows."""

    @classmethod
    def of_kept(cls, one: int, two: int, long: int, *, length: int) -> "Growth":
        """Return the growth of what is kept of every row; a longer row needs more for its pairs."""
        pairs = max(0, long - two)
        fixed, per_token = max(0, 2 * one - two), (two - one - pairs / 2) / length
        return cls(fixed, max(0.0, per_token), per_pair=pairs / (2 * length**2))

    @classmethod
    def of_passing(cls, one: int, two: int, long: int, *, length: int) -> "Growth":
        """Return the growth of what passes; a longer row needs more while it is computed."""
        in_row = max(0, long - two)
        return cls(max(0, 2 * one - two - in_row), max(0, two - one) / length, per_longest=in_row / length)

    def at(self, tokens: int, longest: int) -> float:
        """Return the bytes of a micro-batch of so many tokens in rows of at most `longest`."""
        pairs = self.per_pair * tokens * longest
        return self.fixed + self.per_token * tokens + self.per_longest * longest + pairs


@dataclass(frozen=True, slots=True)
class Need:
    """The memory that a micro-batch of any size needs on top of weights, gradients and optimizer."""

    num_layers: int
    vocab_size: int
    before: Growth
    """Bytes kept at the first layer."""
    given: Growth
    """Bytes of a layer's input, all that is kept of a layer that is recomputed."""
    kept: Growth
    """Bytes that all layers keep for the backward pass, if none is recomputed."""
    passing: Growth
    """Bytes above all these at the highest point, the output layer apart."""
    lost: int = 0
    """Bytes beyond the tensors that `lost_at` tokens took: scratch of libraries, losses of the allocator."""
    lost_at: int = 1

    def bytes_at(self, tokens: int, longest: int, *, recomputed: int) -> int:
        """Return the bytes of a micro-batch if the first `recomputed` layers are recomputed."""
        before, given, passing = (
            part.at(tokens, longest) for part in (self.before, self.given, self.passing)
        )
        of_layer = self.kept.at(tokens, longest) / max(1, self.num_layers)
        kept, head = self.num_layers - recomputed, self._of_head(tokens, given)
        # the output layer is done before the backward pass begins, and what the last layers keep is gone
        # before the first ones are recomputed
        highest = max(kept * of_layer + head, max(kept, 1) * of_layer + passing)
        return round(before + recomputed * given + highest + self._lost_at(tokens))

    def evaluated_at(self, tokens: int, longest: int) -> int:
        """Return the bytes of a micro-batch without a backward pass, or a little more than they are."""
        before, given, passing = (
            part.at(tokens, longest) for part in (self.before, self.given, self.passing)
        )
        return round(before + max(passing, self._of_head(tokens, given)) + self._lost_at(tokens))

    def _of_head(self, tokens: int, given: float) -> float:
        """Return the bytes of the output layer, if all tokens are learned."""
        # the logits of a chunk; the hidden states of learned tokens gathered, and their gradient
        return BYTES_PER_LOGIT * min(tokens * self.vocab_size, CHUNK_LOGITS) + 3 * given

    def _lost_at(self, tokens: int) -> float:
        return self.lost * max(1.0, tokens / self.lost_at)


@dataclass(frozen=True, slots=True)
class _Sample:
    """The bytes of one pass forward and backward."""

    before: int
    given: int
    kept: int
    passing: int


def measure_need(
    objective: ObjectiveModule, row: TrainingRow, pad_id: int, processes: Processes, *, vocab_size: int
) -> Need:
    """Measure the need of training on rows such as `row`, a long one; weights and random numbers stay."""
    length = max(1, min(PROBED_TOKENS, len(row.input_ids) // 2))
    short, long = part_of(row, length), part_of(row, 2 * length)
    samples = [
        _measure(objective, collate(rows, pad_id), processes) for rows in ([short], [short, short], [long])
    ]
    kept = partial(Growth.of_kept, length=length)
    return Need(
        len(layers_of(objective)),
        vocab_size,
        before=kept(*(sample.before for sample in samples)),
        given=kept(*(sample.given for sample in samples)),
        kept=kept(*(sample.kept for sample in samples)),
        passing=Growth.of_passing(*(sample.passing for sample in samples), length=length),
    )


def with_losses(
    need: Need, objective: ObjectiveModule, row: TrainingRow, pad_id: int, processes: Processes, *, free: int
) -> Need:
    """Return the need with what a process on a CPU takes beyond its tensors, as a longer micro-batch shows.

    None is run that needs half of the free bytes by what has been counted.
    """
    length = min(PROBED_TOKENS, len(row.input_ids))
    batches = [collate([part_of(row, length)] * number, pad_id) for number in (8, 4, 2)]
    for batch in batches:
        tokens = len(batch.input_ids)
        expected = need.bytes_at(tokens, length, recomputed=0)
        if 2 * expected > free:
            continue
        with untouched(objective, processes.device), ResidentMeter() as meter, no_recomputation(objective):
            _pass_through(objective, batch, processes)
        return replace(need, lost=max(0, meter.peak - expected), lost_at=tokens)
    return need


@contextmanager
def no_recomputation(objective: ObjectiveModule) -> Iterator[None]:
    """Let all layers keep what the backward pass needs."""
    flags = {layer: layer.gradient_checkpointing for layer in layers_of(objective)}
    try:
        for layer in flags:
            layer.gradient_checkpointing = False
        yield
    finally:
        for layer, flag in flags.items():
            layer.gradient_checkpointing = flag


def part_of(row: TrainingRow, length: int) -> TrainingRow:
    """Return `length` tokens of a row around its first learned one, with few learned ones.

    There ChatGLM-6B has the two control tokens that its positions depend on.
    """
    first = int(np.argmax(row.labels != -100))
    start = max(0, min(first - length // 2, len(row.input_ids) - length))
    labels = row.labels[start : start + length].copy()
    labels[first - start + PROBED_LABELS :] = -100
    count = int((labels != -100).sum())  # of target distributions each label has a line
    return replace(
        row,
        input_ids=row.input_ids[start : start + length],
        labels=labels,
        position_ids=None if row.position_ids is None else row.position_ids[..., start : start + length],
        target_ids=None if row.target_ids is None else row.target_ids[:count],
        target_log_probs=None if row.target_log_probs is None else row.target_log_probs[:count],
    )


def longest_rows(rows: Sequence[TrainingRow], tokens: int) -> list[TrainingRow]:
    """Return the longest rows with at most so many tokens together, and at least one."""
    chosen: list[TrainingRow] = []
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        if len(row.input_ids) <= tokens or not chosen:  # a shorter one may fit where a longer one does not
            tokens -= len(row.input_ids)
            chosen.append(row)
    return chosen


def has_room(objective: ObjectiveModule, batch: Batch, processes: Processes, *, spare: int) -> bool:
    """Run a batch forward and backward on a GPU; return False if that leaves it less than `spare` bytes."""
    device = processes.device
    try:
        with untouched(objective, device):
            _pass_through(objective, batch, processes)
            reusable = torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
            return torch.cuda.mem_get_info(device)[0] + reusable >= spare
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()


@contextmanager
def untouched(objective: ObjectiveModule, device: torch.device) -> Iterator[None]:
    """Let passes be made in training mode whose gradients and random numbers are then as if never made."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    modes = [(part, part.training) for part in objective.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        objective.train()
        for parameter in trained:  # as from the second micro-batch of a step on: gradients are added to
            parameter.grad = torch.zeros_like(parameter)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.grad = None
            for part, mode in modes:
                part.training = mode


def _pass_through(objective: ObjectiveModule, batch: Batch, processes: Processes) -> None:
    with processes.autocast(), objective.passes():
        loss = objective(batch.to(processes.device))
        loss.backward()  # not by `processes`, whose loss scale counts its passes


def _measure(objective: ObjectiveModule, batch: Batch, processes: Processes) -> _Sample:
    """Run a batch forward and backward without recomputation, reading the meter at each layer."""
    layers, lives, given = layers_of(objective), list[int](), 0
    with untouched(objective, processes.device):
        known = [*objective.parameters(), *objective.buffers()]
        known += [p.grad for p in objective.parameters() if p.grad is not None]
        meter = meter_of(processes.device, known)

        def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal given
            given = max(given, inputs[0].numel() * inputs[0].element_size())
            lives.append(meter.live)

        handles = [layer.register_forward_pre_hook(enter) for layer in layers]
        handles += [layer.register_forward_hook(lambda *_: lives.append(meter.live)) for layer in layers[-1:]]
        try:
            with meter, no_recomputation(objective):
                _pass_through(objective, batch, processes)
        finally:
            for handle in handles:
                handle.remove()
    grown = [after - before for before, after in pairwise(lives)]
    # the last layer computes for learned tokens alone, of which these rows have few
    kept = sum(grown) - grown[-1] + max(grown[-2:]) if grown else 0
    return _Sample(lives[0] if lives else 0, given, kept, meter.peak - (lives[-1] if lives else 0))
