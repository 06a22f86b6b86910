"""The memory of a training step, measured on a few short rows before step 1 and carried on to the longest.

A process on a CPU that runs out of memory is killed without an exception, so nothing long is tried there.
T: tokens of a micro-batch, M: tokens of its longest row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from glmtune.data.batches import Batch, collate
from glmtune.data.row import TrainingRow
from glmtune.models.computing import computes_in
from glmtune.models.frozen_linear import block_buffer
from glmtune.models.fused import computing_type
from glmtune.models.recomputing import layers_of
from glmtune.models.row_attention import FEWEST_QUERIES, most_score_bytes
from glmtune.models.wrapped import causal_of
from glmtune.objectives.base import ObjectiveModule
from glmtune.objectives.sft import bytes_per_logit, most_logits
from glmtune.training.allocations import ResidentMeter, meter_of
from glmtune.training.processes import Processes
from glmtune.training.zero import is_in_parts, keeping_gradients

PROBED_TOKENS = 64
"""Tokens of the short row; three passes are made, of 1, 2 and 2 times as many."""
PROBED_LABELS = 2
"""Learned tokens of the short row: the memory of logits does not grow as tokens do, so it is added apart."""


class Passes(Protocol):
    """The device and precision that forward passes run in, those of `Processes`."""

    @property
    def device(self) -> torch.device:
        """The device."""

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The size of a micro-batch."""

    tokens: int
    longest: int
    """Tokens of its longest row."""
    rows: int

    @classmethod
    def of(cls, batch: Batch) -> "Extent":
        """Return the size of a batch."""
        return cls(len(batch.input_ids), max(batch.lengths), len(batch.lengths))


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes that grow with a micro-batch, as one short row, two of it, and a row twice as long show."""

    fixed: float
    per_token: float
    per_row: float = 0.0
    """Bytes for each row: of a prefix, that each has for itself."""
    per_longest: float = 0.0
    """Bytes for each token of the longest row: of what is alive for one row at a time."""
    per_square: float = 0.0
    """Bytes for each pair of tokens of the longest row: of scores that a CPU computes in blocks."""
    per_pair: float = 0.0
    """Bytes for each pair of tokens of a row: of scores or masks of attention that are kept for all rows."""

    @classmethod
    def of_kept(cls, one: int, two: int, long: int, *, length: int, has_prefix: bool) -> "Growth":
        """Return the growth of what is kept of every row; a longer row needs more for its pairs."""
        pairs, of_row = max(0, long - two), max(0, two - long) if has_prefix else 0
        per_token = (two - one - of_row - pairs / 2) / length
        return cls(max(0, 2 * one - two), max(0.0, per_token), of_row, per_pair=pairs / (2 * length**2))

    @classmethod
    def of_passing(
        cls, one: int, two: int, long: int, *, length: int, has_prefix: bool, is_in_blocks: bool
    ) -> "Growth":
        """Return the growth of what passes; a longer row needs more while it is computed.

        `is_in_blocks`: a row's scores are computed in blocks, and grow as a square up to the size of one.
        """
        in_row, of_row = max(0, long - two), max(0, two - long) if has_prefix else 0
        per_token = max(0.0, (two - one - of_row) / length)
        if is_in_blocks:
            fixed = max(0.0, 2 * one - two - in_row / 3)
            return cls(fixed, per_token, of_row, per_square=in_row / (3 * length**2))
        return cls(max(0, 2 * one - two - in_row), per_token, of_row, per_longest=in_row / length)

    def at(self, size: Extent) -> float:
        """Return the bytes of a micro-batch of this size."""
        pairs = self.per_pair * size.tokens * size.longest
        in_rows = self.per_row * size.rows + self.per_longest * size.longest
        most = max(most_score_bytes(), self.per_square * FEWEST_QUERIES * size.longest)
        scores = min(self.per_square * size.longest**2, most)
        return self.fixed + self.per_token * size.tokens + in_rows + scores + pairs

    def with_rows(self, factor: float) -> "Growth":
        """Return the growth with so many times the bytes for each row."""
        return replace(self, per_row=factor * self.per_row)


@dataclass(frozen=True, slots=True)
class Need:
    """The memory that a micro-batch of any size needs on top of weights, gradients and optimizer."""

    num_layers: int
    before: Growth
    """Bytes kept at the first layer."""
    given: Growth
    """Bytes of a layer's input, all that is kept of a layer that is recomputed."""
    kept: Growth
    """Bytes that all layers keep for the backward pass, if none is recomputed."""
    ending: Growth
    """Bytes above all these behind the last layer, of few learned tokens."""
    passing: Growth
    """Bytes above all these at the highest point of the backward pass."""
    vocab_size: int
    bytes_per_logit: int
    most_logits: int
    """The most logits that are computed at once."""
    lost: int = 0
    """Bytes beyond the tensors that `lost_at` tokens took: scratch of libraries, losses of the allocator."""
    lost_at: int = 1
    lost_share: float = 0.0
    """The same as a share of the tensors, where no pass has been measured."""

    def bytes_at(self, size: Extent, *, recomputed: int) -> int:
        """Return the bytes of a micro-batch if the first `recomputed` layers are recomputed."""
        return sum(self.parts_at(size, recomputed=recomputed).values())

    def parts_at(self, size: Extent, *, recomputed: int) -> dict[str, int]:
        """Return these bytes at their highest point by part: activations, logits, and what is lost."""
        before, given, ending, passing = (
            part.at(size) for part in (self.before, self.given, self.ending, self.passing)
        )
        of_layer = self.kept.at(size) / max(1, self.num_layers)
        kept, logits = self.num_layers - recomputed, self.logits_at(size)
        # the output layer is done before the backward pass begins, and what the last layers keep is gone
        # before the first ones are recomputed
        # of learned tokens the hidden states and their gradient are there apart until the last layer is back
        in_head = kept * of_layer + ending + 3 * given
        in_layers = max(kept, 1) * of_layer + passing + 2 * given
        is_in_head = in_head + logits > in_layers
        activations = round(before + recomputed * given + (in_head if is_in_head else in_layers))
        logits = logits if is_in_head else 0
        lost = round(self._lost_at(size) + self.lost_share * (activations + logits))
        return {"activations": activations, "logits": logits, "lost": lost}

    def evaluated_at(self, size: Extent) -> int:
        """Return the bytes of a micro-batch without a backward pass, or a little more than they are."""
        before, given, ending, passing = (
            part.at(size) for part in (self.before, self.given, self.ending, self.passing)
        )
        highest = max(passing, ending + 3 * given + self.logits_at(size))
        return round((1 + self.lost_share) * (before + highest) + self._lost_at(size))

    def _lost_at(self, size: Extent) -> float:
        return self.lost * max(1.0, size.tokens / self.lost_at)

    def logits_at(self, size: Extent) -> int:
        """Return the bytes of the logits of a chunk, if all tokens are learned."""
        return self.bytes_per_logit * min(size.tokens * self.vocab_size, self.most_logits)


@dataclass(frozen=True, slots=True)
class _Sample:
    """The bytes of one pass forward and backward."""

    before: int
    given: int
    kept: int
    ending: int
    passing: int


@dataclass(frozen=True, slots=True)
class Repeated:
    """Layers that a model lacks, each like one that it has."""

    layer: int = 0
    """The number of that layer."""
    times: int = 0
    """The number of layers that are lacking."""


def measure_need(
    objective: ObjectiveModule,
    row: TrainingRow,
    pad_id: int,
    processes: Passes,
    *,
    repeated: Repeated = Repeated(),
) -> Need:
    """Measure the need of training on rows such as `row`, a long one; weights and random numbers stay.

    repeated: the layers to count beside the model's own.
    """
    head = causal_of(objective.model).get_output_embeddings()
    with processes.autocast():
        computing = computing_type(torch.empty(0, dtype=computes_in(objective.model)))
    buffer = block_buffer(computing)  # made now, and not by the first pass
    length = max(1, min(PROBED_TOKENS, len(row.input_ids) // 2))
    short, long = part_of(row, length), part_of(row, 2 * length)
    samples = [
        _measure(objective, collate(rows, pad_id), processes, repeated, buffer)
        for rows in ([short], [short, short], [long])
    ]
    has_prefix = samples[1].before > samples[2].before  # two rows have it twice
    kept = partial(Growth.of_kept, length=length, has_prefix=has_prefix)
    is_in_blocks = processes.device.type == "cpu"
    passing = partial(Growth.of_passing, length=length, has_prefix=has_prefix, is_in_blocks=is_in_blocks)
    number = len(layers_of(objective))
    lacking = (number + repeated.times) / number  # a prefix has a part for each layer
    return Need(
        num_layers=number + repeated.times,
        before=kept(*(sample.before for sample in samples)).with_rows(lacking),
        given=kept(*(sample.given for sample in samples)),
        kept=kept(*(sample.kept for sample in samples)),
        ending=passing(*(sample.ending for sample in samples)),
        passing=passing(*(sample.passing for sample in samples)).with_rows(lacking),
        vocab_size=objective.model.config.vocab_size,
        bytes_per_logit=bytes_per_logit(head, computing),
        most_logits=most_logits(head, processes.device),
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
        expected = need.bytes_at(Extent.of(batch), recomputed=0)
        if 2 * expected > free:
            continue
        with untouched(objective, processes.device), ResidentMeter() as meter, no_recomputation(objective):
            _pass_through(objective, batch, processes)
        return replace(need, lost=max(0, meter.peak - expected), lost_at=len(batch.input_ids))
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
            parameter.grad = None if is_in_parts(parameter) else torch.zeros_like(parameter)
        try:
            with keeping_gradients(trained):
                yield
        finally:
            for parameter in trained:
                parameter.grad = None
            for part, mode in modes:
                part.training = mode


def _pass_through(
    objective: ObjectiveModule, batch: Batch, processes: Passes, *, between: Callable[[], None] | None = None
) -> None:
    with processes.autocast(), objective.passes():
        loss = objective(batch.to(processes.device))
        if between:
            between()
        loss.backward()  # not by `processes`, whose loss scale counts its passes


def _measure(
    objective: ObjectiveModule, batch: Batch, processes: Passes, repeated: Repeated, buffer: Tensor
) -> _Sample:
    """Run a batch forward and backward without recomputation, reading the meter at each layer."""
    layers, lives, given, ending = layers_of(objective), list[int](), 0, 0
    with untouched(objective, processes.device):
        known = [*objective.parameters(), *objective.buffers(), buffer]
        known += [p.grad for p in objective.parameters() if p.grad is not None]
        meter = meter_of(processes.device, known)

        def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal given
            if not torch.is_grad_enabled():  # a pass of the base (`retain.kl`), over before the model's own
                return
            given = max(given, inputs[0].numel() * inputs[0].element_size())
            lives.append(meter.live)

        def leave(*_: object) -> None:
            if torch.is_grad_enabled():
                lives.append(meter.live)
                meter.restart()

        def turn() -> None:
            nonlocal ending
            ending = meter.peak - lives[-1]
            meter.restart()

        handles = [layer.register_forward_pre_hook(enter) for layer in layers]
        handles += [layer.register_forward_hook(leave) for layer in layers[-1:]]
        try:
            with meter, no_recomputation(objective):
                _pass_through(objective, batch, processes, between=turn)
        finally:
            for handle in handles:
                handle.remove()
    grown = [after - before for before, after in pairwise(lives)]
    # the last layer computes for learned tokens alone, of which these rows have few
    kept = sum(grown) - grown[-1] + max(grown[-2:])
    kept += repeated.times * grown[repeated.layer]
    return _Sample(lives[0], given, kept, ending, meter.peak - lives[-1])
