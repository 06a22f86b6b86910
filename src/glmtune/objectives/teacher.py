"""Distributions that a model gives rows of tokens: recorded by their likeliest ids, and compared with later.

Shapes: L learned tokens, K recorded ids of each, C hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glmtune.data.batches import Batch, certain_targets, collate
from glmtune.data.row import TrainingRow
from glmtune.models.fused import wide_type
from glmtune.models.packed import ByRow, Rows, count_positions_by_row
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import causal_of
from glmtune.objectives.sft import likeliest, recorded_targets, summed_cross_entropy
from glmtune.objectives.targets import LIKELIEST

LOOKED_TOKENS = 512
"""Tokens that are looked at together: few, for a run's own steps may have as few."""

Value = TypeVar("Value")


class Recorders(Protocol):
    """The processes that record or compare together, each a share of the rows; `training.Processes` are."""

    rank: int
    number: int
    device: torch.device

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which forward passes compute in the run's precision."""

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""


@dataclass(slots=True)
class RowFigures:
    """A row's figures under a model, for each of its L learned tokens; in float64."""

    losses: NDArray[np.float64]
    """Cross-entropies of the labels, (L,)."""
    kls: NDArray[np.float64]
    """KL divergences from what is recorded, (L,): over the recorded ids, and all others as one."""


def record_likeliest(
    model: CausalLM, rows: Sequence[TrainingRow], *, processes: Recorders, pad_id: int
) -> list[TrainingRow]:
    """Return the rows with the distributions that the model gives their learned tokens, as it now is.

    Of each label and the likeliest other ids, `LIKELIEST` together, in the type that the run computes in;
    without dropout. All processes get all rows.
    """

    def look(batch: Batch, hidden: Tensor, head: nn.Module) -> tuple[Tensor, ...]:
        return likeliest(hidden, batch.labels[batch.is_learned()], head, LIKELIEST)

    recorded = []
    for row, (ids, log_probs) in zip(rows, _look(model, rows, look, processes, pad_id), strict=True):
        labels = row.labels[row.labels != -100]
        # a row's first token is not learned, yet has a line where it has a label
        certain = certain_targets(torch.from_numpy(labels[: len(labels) - len(ids)]).long(), LIKELIEST)
        ids, log_probs = (
            np.concatenate((part.numpy(), found))
            for part, found in zip(certain, (ids, log_probs), strict=True)
        )
        recorded.append(
            replace(row, target_ids=ids.astype(np.int32), target_log_probs=log_probs.astype(np.float32))
        )
    return recorded


def compare_with_recorded(
    model: CausalLM, rows: Sequence[TrainingRow], *, processes: Recorders, pad_id: int
) -> list[RowFigures]:
    """Return the figures of rows that `record_likeliest` gave, under a model as it now is, without dropout.

    All processes get those of all rows.
    """

    def look(batch: Batch, hidden: Tensor, head: nn.Module) -> tuple[Tensor, ...]:
        is_learned = batch.is_learned()
        recorded = recorded_targets(batch, is_learned)
        assert recorded is not None
        assert bool((recorded.ids[:, 0] == batch.labels[is_learned]).all())
        found = hidden.new_empty(recorded.log_probs.shape, dtype=wide_type(hidden.dtype))
        summed_cross_entropy(hidden, recorded.as_targets(found.dtype), head, by_token=found)
        return -found[:, 0].double(), recorded.divergence(found)

    assert all(row.target_ids is not None for row in rows)
    return [RowFigures(losses, kls) for losses, kls in _look(model, rows, look, processes, pad_id)]


Look = Callable[[Batch, Tensor, nn.Module], tuple[Tensor, ...]]
"""Of a batch, the hidden states (L, C) that predict its learned tokens, and the head: tensors (L, ...)."""


@torch.no_grad()
def _look(
    model: CausalLM, rows: Sequence[TrainingRow], look: Look, processes: Recorders, pad_id: int
) -> list[tuple[NDArray[Any], ...]]:
    """Return what `look` gives of each row, in evaluation mode, with this process's share of the work."""
    by_row, head, was_training = ByRow(model), causal_of(model).get_output_embeddings(), model.training
    found: list[tuple[NDArray[Any], ...]] = []
    model.eval()
    try:
        for part in _parts(rows[processes.rank :: processes.number]):
            batch = collate(part, pad_id).to(processes.device)
            packed, is_learned = Rows(batch.bounds), batch.is_learned()
            positions = batch.position_ids
            if positions is None:
                positions = count_positions_by_row(model, batch.input_ids, packed)
            with processes.autocast():
                hidden = by_row.run(packed, batch.input_ids, positions, is_learned.nonzero()[:, 0] - 1)
                tensors = look(batch, hidden, head)
            counts = [int(mask.sum()) for mask in torch.split(is_learned, batch.lengths)]
            found += zip(
                *([part.numpy() for part in torch.split(tensor.cpu(), counts)] for tensor in tensors),
                strict=True,
            )
    finally:
        model.train(was_training)
    together: list[tuple[NDArray[Any], ...]] = [()] * len(rows)
    for rank, share in enumerate(processes.gather(found)):
        together[rank :: processes.number] = share
    return together


def _parts(rows: Sequence[TrainingRow]) -> Iterator[list[TrainingRow]]:
    """Yield the rows in their order, as many at once as `LOOKED_TOKENS` hold, and one at least."""
    part: list[TrainingRow] = []
    for row in rows:
        if part and sum(len(known.input_ids) for known in (*part, row)) > LOOKED_TOKENS:
            yield part
            part = []
        part.append(row)
    if part:
        yield part
