"""Rows -> steps of micro-batches: a pure function of seed and step, so a run resumes by its step number."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from glmtune.data.row import Row


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Pad rows on the right to the longest. Returns input_ids, labels, attention_mask, each (B, T) int64."""
    width = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[i, :length] = torch.from_numpy(row.input_ids.astype(np.int64))
        labels[i, :length] = torch.from_numpy(row.labels.astype(np.int64))
        mask[i, :length] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}


class Steps:
    """The rows of each optimizer step, and this process's share of them."""

    def __init__(
        self,
        rows: Sequence[Row],
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

    def rows_of(self, step: int) -> list[Row]:
        """All rows of a step (from 1), over all processes."""
        epoch, place = divmod(step - 1, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng((self.seed, epoch)).permutation(len(self.rows)),
            )
        start = place * self.batch_size
        return [self.rows[i] for i in self._order[start : start + self.batch_size]]

    def micro_batches(self, step: int) -> list[list[Row]]:
        """This process's rows of a step in micro-batches of similar length, at least one micro-batch.

        A process that gets no row of a small last step gets one in which nothing is learned, because every
        process must take part in the exchange of gradients.
        """
        by_length = sorted(self.rows_of(step), key=lambda row: len(row.input_ids))
        mine = by_length[self.rank :: self.num_processes]
        if not mine:
            mine = [replace(by_length[0], labels=np.full_like(by_length[0].labels, -100))]
        size = self.micro_batch_size
        return [mine[i : i + size] for i in range(0, len(mine), size)]
