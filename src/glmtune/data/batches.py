"""Rows -> steps of micro-batches: a pure function of seed and step, so a run resumes by its step number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glmtune.data.row import TrainingRow


@dataclass(frozen=True, slots=True)
class Batch:
    """N rows, end to end: T tokens in all, L of them with labels."""

    input_ids: Tensor
    """(T,)"""
    labels: Tensor
    """The ids to learn, -100 elsewhere; not shifted. (T,)"""
    bounds: tuple[int, ...]
    """Where each row begins, and where the last one ends: 0, ..., T."""
    sources: tuple[int, ...]
    """Which source each row is from."""
    pad_id: int = 0
    """What `padded` fills up with."""
    position_ids: Tensor | None = None
    """Where an objective has positions of its own, (..., T)."""
    target_ids: Tensor | None = None
    """Where distributions are learned: for each label the K likeliest ids, (L, K)."""
    target_log_probs: Tensor | None = None
    """The logarithms of their probabilities, (L, K)."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [end - start for start, end in pairwise(self.bounds)]

    def is_learned(self) -> Tensor:
        """Where a token is learned: one that has a label and a token of its row before it, (T,)."""
        learned = self.labels != -100
        learned[list(self.bounds[:-1])] = False
        return learned

    def padded(self) -> dict[str, Tensor]:
        """input_ids, labels and attention_mask, each (N, longest row), and position_ids if there are some,
        (N, ..., longest row); the pads on the right.
        """
        filled = {
            "input_ids": (self.input_ids, self.pad_id),
            "labels": (self.labels, -100),
            "attention_mask": (torch.ones_like(self.input_ids), 0),
        }
        if self.position_ids is not None:
            filled["position_ids"] = (self.position_ids, 0)
        return {name: self._pad(flat, pad) for name, (flat, pad) in filled.items()}

    def _pad(self, flat: Tensor, pad: int) -> Tensor:
        rows = torch.split(flat.movedim(-1, 0), self.lengths)
        return pad_sequence([*rows], batch_first=True, padding_value=pad).movedim(1, -1)

    def rows(self) -> "Iterator[Batch]":
        """Each row as a batch of its own."""
        num_labels = [int((part != -100).sum()) for part in torch.split(self.labels, self.lengths)]
        ends = list(accumulate(num_labels, initial=0))
        for i, (start, end) in enumerate(pairwise(self.bounds)):
            labelled = slice(ends[i], ends[i + 1])
            yield Batch(
                self.input_ids[start:end],
                self.labels[start:end],
                (0, end - start),
                self.sources[i : i + 1],
                self.pad_id,
                None if self.position_ids is None else self.position_ids[..., start:end],
                None if self.target_ids is None else self.target_ids[labelled],
                None if self.target_log_probs is None else self.target_log_probs[labelled],
            )

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        held: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)}
        return replace(self, **held | moved)


def collate(rows: Sequence[TrainingRow], pad_id: int) -> Batch:
    """Rows as a batch. Of positions and distributions either all rows have some, or none has."""
    return Batch(
        _joined([row.input_ids for row in rows], np.int64),
        _joined([row.labels for row in rows], np.int64),
        tuple(accumulate((len(row.input_ids) for row in rows), initial=0)),
        tuple(row.source for row in rows),
        pad_id,
        _joined_if([row.position_ids for row in rows], np.int64, axis=-1),
        _joined_if([row.target_ids for row in rows], np.int64),
        _joined_if([row.target_log_probs for row in rows], np.float32),
    )


def _joined(parts: Sequence[NDArray[Any]], kind: type[np.generic], axis: int = 0) -> Tensor:
    return torch.from_numpy(np.concatenate(parts, axis).astype(kind))


def _joined_if(parts: Sequence[NDArray[Any] | None], kind: type[np.generic], axis: int = 0) -> Tensor | None:
    there = [part for part in parts if part is not None]
    assert len(there) in (0, len(parts))
    return _joined(there, kind, axis) if there else None


def divide(
    rows: Sequence[TrainingRow], size: int, *, rank: int = 0, number: int = 1
) -> list[list[TrainingRow]]:
    """One process's share of some rows, in micro-batches of similar length.

    All get equally many, since every process takes part in every pass: where the rows do not suffice, in the
    last one nothing is learned.
    """
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    mine, most = by_length[rank::number], by_length[::number]
    parts = [mine[i : i + size] for i in range(0, len(most), size)]
    return [part or [_unlearned(by_length[0])] for part in parts]


class Steps:
    """The rows of each optimizer step, and this process's share of them."""

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.rank = rank
        self.num_processes = num_processes
        self.per_epoch = -(-len(rows) // batch_size)
        """Steps in one pass over the rows; the last one takes what is left."""
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def num_samples(self, num_steps: int) -> int:
        """Rows in so many steps, over all processes."""
        passes, rest = divmod(num_steps, self.per_epoch)
        return passes * len(self.rows) + min(rest * self.batch_size, len(self.rows))

    def rows_of(self, step: int) -> list[TrainingRow]:
        """All rows of a step (from 1), over all processes."""
        epoch, step_in_epoch = divmod(step - 1, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng((self.seed, epoch)).permutation(len(self.rows)),
            )
        start = step_in_epoch * self.batch_size
        return [self.rows[i] for i in self._order[start : start + self.batch_size]]

    def micro_batches(self, step: int) -> list[list[TrainingRow]]:
        """This process's rows of a step, as `divide` has them."""
        rows, size = self.rows_of(step), self.micro_batch_size
        return divide(rows, size, rank=self.rank, number=self.num_processes)


def _unlearned(row: TrainingRow) -> TrainingRow:
    """The row with nothing to learn in it."""
    ids, log_probs = row.target_ids, row.target_log_probs
    return replace(
        row,
        labels=np.full_like(row.labels, -100),
        target_ids=None if ids is None else ids[:0],
        target_log_probs=None if log_probs is None else log_probs[:0],
    )
