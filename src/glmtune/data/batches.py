"""Batches of training rows, and the rows of each optimizer step.

The rows of a step depend on the seed and the step's number alone, so a run resumes at any step.
"""

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
from glmtune.recipe.train import MicroBatchSize, token_limit

AUTO_TOKENS = 2048
"""Tokens of a micro-batch whose size is `auto` where nobody has looked at the memory."""
MOST_LOOKED_AT = 2_000_000
"""Rows of a run's steps, repetitions included, that are looked at for its longest micro-batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of N rows, concatenated without padding: T tokens in all, L of them with labels."""

    input_ids: Tensor
    """(T,)"""
    labels: Tensor
    """The ids to learn, -100 elsewhere; not shifted. (T,)"""
    bounds: tuple[int, ...]
    """The rows' first positions, then the last row's end: 0, ..., T; N + 1 numbers."""
    sources: tuple[int, ...]
    """The number of each row's source in `data.train`; N numbers."""
    pad_id: int = 0
    """The id that `padded` fills shorter rows with."""
    position_ids: Tensor | None = None
    """Positions set by the objective, (..., T); None if they count from 0 in each row."""
    target_ids: Tensor | None = None
    """Ids of each label's teacher distribution, (L, K): the label, then the likeliest others; None if labels
    alone are learned."""
    target_log_probs: Tensor | None = None
    """The log probabilities of `target_ids`, (L, K); where a row has no teacher, 0 for the label."""

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return [end - start for start, end in pairwise(self.bounds)]

    def is_learned(self) -> Tensor:
        """Return the mask (T,) of the tokens in the loss: each has a label and follows a token of its row."""
        learned = self.labels != -100
        # the logits that predict a token are those of the token before it: a row's first token has none,
        # and must not be predicted from the row that happens to stand before it
        learned[list(self.bounds[:-1])] = False
        return learned

    def learned_sources(self) -> Tensor:
        """Return the number of the source of each token in the loss, in their order."""
        lengths = torch.tensor(self.lengths, device=self.labels.device)
        sources = torch.tensor(self.sources, device=self.labels.device)
        return sources.repeat_interleave(lengths)[self.is_learned()]

    def padded(self) -> dict[str, Tensor]:
        """Return the model's inputs with one row a line, padded on the right.

        input_ids, labels and attention_mask are (N, longest row); position_ids, if the batch has some,
        (N, ..., longest row).
        """
        filled = {
            "input_ids": (self.input_ids, self.pad_id),
            "labels": (self.labels, -100),
            "attention_mask": (torch.ones_like(self.input_ids), 0),
        }
        if self.position_ids is not None:
            filled["position_ids"] = (self.position_ids, 0)
        padded = {}
        for name, (flat, pad) in filled.items():
            # split and padded along the first axis, then moved back: (..., T) -> (N, ..., longest row)
            rows = torch.split(flat.movedim(-1, 0), self.lengths)
            padded[name] = pad_sequence([*rows], batch_first=True, padding_value=pad).movedim(1, -1)
        return padded

    def rows(self) -> "Iterator[Batch]":
        """Yield each row as a batch of one row."""
        # target_ids and target_log_probs have a line for each label, not for each token
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
        """Return the batch with its tensors on a device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **values | moved)


def collate(rows: Sequence[TrainingRow], pad_id: int) -> Batch:
    """Return the rows as a batch. Of positions either all rows have some, or none has.

    Where some rows have distributions, the others' labels become distributions of one id.
    """
    width = max((row.target_ids.shape[1] for row in rows if row.target_ids is not None), default=0)
    positions = [row.position_ids for row in rows if row.position_ids is not None]
    assert len(positions) in (0, len(rows))
    targets = [_targets(row, width) for row in rows] if width else []
    return Batch(
        _concatenate([row.input_ids for row in rows], np.int64),
        _concatenate([row.labels for row in rows], np.int64),
        tuple(accumulate((len(row.input_ids) for row in rows), initial=0)),
        tuple(row.source for row in rows),
        pad_id,
        _concatenate(positions, np.int64, axis=-1) if positions else None,
        torch.cat([ids for ids, _ in targets]) if targets else None,
        torch.cat([log_probs for _, log_probs in targets]) if targets else None,
    )


def _concatenate(parts: Sequence[NDArray[Any]], dtype: type[np.generic], axis: int = 0) -> Tensor:
    return torch.from_numpy(np.concatenate(parts, axis).astype(dtype))


def _targets(row: TrainingRow, width: int) -> tuple[Tensor, Tensor]:
    """Return a row's distributions, (L, width) each; of one without, certain labels."""
    if row.target_ids is None or row.target_log_probs is None:
        labels = row.labels[row.labels != -100]
        return certain_targets(torch.from_numpy(labels.astype(np.int64)), width)
    assert row.target_ids.shape[1] == width
    return torch.from_numpy(row.target_ids.astype(np.int64)), torch.from_numpy(row.target_log_probs)


def certain_targets(labels: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return distributions (L, width) of certain labels (L,): ids and log probabilities."""
    others = torch.arange(width - 1, device=labels.device).expand(len(labels), -1)
    others = others + (others >= labels[:, None]).long()  # any others but the label
    log_probs = torch.full((len(labels), width), -torch.inf, device=labels.device)
    log_probs[:, 0] = 0
    return torch.cat((labels[:, None], others), dim=1), log_probs


def divide(
    rows: Sequence[TrainingRow], size: MicroBatchSize, *, rank: int = 0, number: int = 1
) -> list[list[TrainingRow]]:
    """Return the share of the rows of process `rank` of `number`, in micro-batches of similar length.

    `size` is `train.micro_batch_size`; auto stands for `AUTO_TOKENS`. A longer row is a micro-batch by
    itself. Every process gets equally many micro-batches: if the rows do not suffice, its last one holds a
    row in which nothing is learned.
    """
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    # in each round every process gets one row; all cut before the same rounds, by the longest row of each
    most, cuts, tokens = token_limit(size) or AUTO_TOKENS, list[int](), 0
    for i, start in enumerate(range(0, len(by_length), number)):
        longest = len(by_length[min(start + number, len(by_length)) - 1].input_ids)
        is_full = i % size == 0 if isinstance(size, int) else tokens + longest > most
        if is_full or not cuts:
            cuts.append(i)
            tokens = 0
        tokens += longest
    share = by_length[rank::number]
    parts = [share[start:end] for start, end in pairwise([*cuts, len(by_length)])]
    if parts and not parts[-1]:
        # every process takes part in every forward and backward pass, or the others would wait forever: this
        # one repeats the shortest row, with no label in it
        row = by_length[0]
        blank = replace(
            row,
            labels=np.full_like(row.labels, -100),
            target_ids=None if row.target_ids is None else row.target_ids[:0],
            target_log_probs=None if row.target_log_probs is None else row.target_log_probs[:0],
        )
        parts[-1] = [blank]
    return parts


def longest_micro_batch(lengths: NDArray[np.int64], size: MicroBatchSize, number: int = 1) -> int:
    """Return the most tokens that a micro-batch of one of `number` processes may have.

    lengths: (steps, rows), the lengths of the rows of each step, 0 where it has fewer.
    """
    # the process with the longest row of each round has the longest micro-batch
    rounds = np.sort(lengths, axis=1)[:, ::-1][:, ::number]
    if isinstance(size, int):
        return int(rounds[:, :size].sum(axis=1).max(initial=0))
    most = max(token_limit(size) or AUTO_TOKENS, int(rounds.max(initial=0)))
    return min(most, int(rounds.sum(axis=1).max(initial=0)))


def most_rows(lengths: NDArray[np.int64], size: MicroBatchSize, number: int = 1) -> int:
    """Return the most rows that a micro-batch may have; arguments as of `longest_micro_batch`."""
    if isinstance(size, int):
        return min(size, -(-int(lengths.shape[1]) // number))
    rounds = np.sort(lengths, axis=1)[:, ::-1][:, ::number][:, ::-1]
    is_within = rounds.cumsum(axis=1) <= (token_limit(size) or AUTO_TOKENS)  # short rows come first
    return int(((rounds > 0) & is_within).sum(axis=1).max(initial=1))


class Steps:
    """The rows of each optimizer step, and this process's share of them."""

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        *,
        batch_size: int,
        micro_batch_size: MicroBatchSize,
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
        draws: Sequence[int] | None = None,
    ) -> None:
        """Share out `rows`; `draws`: how many of each source an epoch has; without them, each row once."""
        self.rows = rows
        self.draws = draws
        self.epoch_rows = len(rows) if draws is None else sum(draws)
        """Rows of an epoch."""
        self._sources = np.array([row.source for row in rows])
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.rank = rank
        self.num_processes = num_processes
        self.per_epoch = -(-self.epoch_rows // batch_size)
        """Steps in one epoch; the last one may have fewer rows."""
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def num_samples(self, num_steps: int) -> int:
        """Return the number of rows in the first `num_steps` steps, over all processes."""
        passes, rest = divmod(num_steps, self.per_epoch)
        return passes * self.epoch_rows + min(rest * self.batch_size, self.epoch_rows)

    def num_of_source(self, source: int, num_steps: int) -> int:
        """Return the number of rows of a source in the first `num_steps` steps, over all processes."""
        passes, rest = divmod(num_steps, self.per_epoch)
        whole, last = (self._sources[self._draw(passes)] == source), rest * self.batch_size
        return passes * int(whole.sum()) + int(whole[:last].sum())

    def rows_of(self, step: int) -> list[TrainingRow]:
        """Return all rows of a step (counted from 1), over all processes."""
        epoch, step_in_epoch = divmod(step - 1, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._draw(epoch)
        start = step_in_epoch * self.batch_size
        return [self.rows[i] for i in self._order[start : start + self.batch_size]]

    def in_size(self, micro_batch_size: MicroBatchSize) -> "Steps":
        """Return the same steps in micro-batches of another size."""
        return self._changed(self.rows, micro_batch_size)

    def with_rows(self, rows: Sequence[TrainingRow]) -> "Steps":
        """Return steps of other rows."""
        return self._changed(rows, self.micro_batch_size)

    def _changed(self, rows: Sequence[TrainingRow], micro_batch_size: MicroBatchSize) -> "Steps":
        return Steps(
            rows,
            batch_size=self.batch_size,
            micro_batch_size=micro_batch_size,
            seed=self.seed,
            rank=self.rank,
            num_processes=self.num_processes,
            draws=self.draws,
        )

    def longest_micro_batch(self, num_steps: int, size: MicroBatchSize) -> int:
        """Return the most tokens of a micro-batch of this size in the first steps, over all processes.

        Of a run of very many steps only the first ones are looked at.
        """
        # no step is longer than one of the longest rows; of a mixture it may have one several times
        by_length = sorted((len(row.input_ids) for row in self.rows), reverse=True)[: self.batch_size]
        if self.draws is not None:
            by_length = by_length[:1] * self.batch_size
        bound = longest_micro_batch(np.array([by_length]), size, self.num_processes)
        longest = 0
        for lengths in self.lengths(num_steps):
            longest = max(longest, longest_micro_batch(lengths, size, self.num_processes))
            if longest >= bound:
                break
        return longest

    def most_rows(self, num_steps: int, size: MicroBatchSize) -> int:
        """Return the most rows of a micro-batch of this size in the first steps, over all processes."""
        parts = self.lengths(num_steps)
        return max(most_rows(lengths, size, self.num_processes) for lengths in parts)

    def lengths(self, num_steps: int) -> Iterator[NDArray[np.int64]]:
        """Yield for each pass the lengths of the rows of its steps, (steps, rows), 0 where there are fewer.

        Of a run of very many steps only the first ones.
        """
        of_row = np.array([len(row.input_ids) for row in self.rows])
        left = min(num_steps, max(1, MOST_LOOKED_AT // self.batch_size))
        # an epoch of one step has the same rows every time, but in a mixture
        is_same = self.per_epoch == 1 and self.draws is None
        for epoch in range(1 if is_same else -(-left // self.per_epoch)):
            padded = np.zeros((self.per_epoch, self.batch_size), dtype=np.int64)
            padded.flat[: self.epoch_rows] = of_row[self._draw(epoch)]
            yield padded[:left]
            left -= self.per_epoch

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows of an epoch in their order, as positions in `rows`."""
        # seeded by the epoch's number, not drawn from a running generator: no state to save for a resume
        generator = np.random.default_rng((self.seed, epoch))
        if self.draws is None:
            return generator.permutation(len(self.rows))
        parts = [self._draw_source(source, epoch, self.draws) for source in range(len(self.draws))]
        return generator.permutation(np.concatenate(parts))

    def _draw_source(self, source: int, epoch: int, draws: Sequence[int]) -> NDArray[np.int64]:
        """Return the rows that an epoch draws from a source: it goes on where the epoch before has stopped.

        The source is shuffled, drawn to its end, and shuffled anew.
        """
        own, count = np.flatnonzero(self._sources == source), draws[source]
        if not count:
            return own[:0]
        first, start = divmod(epoch * count, len(own))
        passes = range(first, first + -(-(start + count) // len(own)))
        # the source's number keeps these orders apart from that of the epoch
        orders = [np.random.default_rng((self.seed, i, source + 1)).permutation(own) for i in passes]
        return np.concatenate(orders)[start : start + count]

    def micro_batches(self, step: int) -> list[list[TrainingRow]]:
        """Return this process's rows of a step, in micro-batches; see `divide`."""
        rows, size = self.rows_of(step), self.micro_batch_size
        return divide(rows, size, rank=self.rank, number=self.num_processes)
