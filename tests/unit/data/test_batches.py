"""A batch gives back the rows that it was made of: as rows, padded, and divided among processes."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fuzz import examples
from glmtune.data.batches import Batch, Steps, collate, divide, longest_micro_batch
from glmtune.data.row import TrainingRow
from models import random_rows

PAD = 9


@st.composite
def rows(draw: st.DrawFn) -> list[TrainingRow]:
    """Make rows; either all have positions and the two likeliest ids of each label, or none has."""
    is_rich, made = draw(st.booleans()), []
    for i in range(draw(st.integers(1, 4))):
        ids = np.array(draw(st.lists(st.integers(0, 99), min_size=1, max_size=6)), dtype=np.int32)
        labels = np.where(draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))), ids, -100)
        count = int((labels != -100).sum())
        more = {
            "position_ids": np.stack([np.arange(len(ids)) + i, np.zeros(len(ids), dtype=np.int64)]),
            "target_ids": np.arange(2 * count).reshape(count, 2).astype(np.int32) + i,
            "target_log_probs": np.full((count, 2), -i - 1, dtype=np.float32),
        }
        made.append(
            TrainingRow(ids, labels.astype(np.int32), f"rows:{i + 1}", source=i, **more if is_rich else {})
        )
    return made


def assert_same(one: Batch, other: Batch) -> None:
    for name in Batch.__slots__:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs, name


@settings(max_examples=examples(60))
@given(rows())
def test_a_batch_gives_its_rows_as_batches_of_one(made: list[TrainingRow]) -> None:
    batch = collate(made, PAD)
    assert batch.lengths == [len(row.input_ids) for row in made]
    for row, alone in zip(made, batch.rows(), strict=True):
        assert_same(alone, collate([row], PAD))


@settings(max_examples=examples(60))
@given(rows())
def test_padded_rows_are_the_rows_with_pads_on_the_right_that_nobody_sees_or_learns(
    made: list[TrainingRow],
) -> None:
    padded = collate(made, PAD).padded()
    for i, row in enumerate(made):
        length = len(row.input_ids)
        ids, labels, mask = (padded[name][i].tolist() for name in ("input_ids", "labels", "attention_mask"))
        assert (ids[:length], labels[:length]) == (row.input_ids.tolist(), row.labels.tolist())
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert set(ids[length:]) <= {PAD}
        assert set(labels[length:]) <= {-100}
        if row.position_ids is not None:
            assert padded["position_ids"][i, :, :length].tolist() == row.position_ids.tolist()
    assert ("position_ids" in padded) == (made[0].position_ids is not None)


@settings(max_examples=examples(60))
@given(rows())
def test_a_token_is_learned_where_it_has_a_label_and_its_row_a_token_before_it(
    made: list[TrainingRow],
) -> None:
    expected = sum(int((row.labels[1:] != -100).sum()) for row in made)
    assert int(collate(made, PAD).is_learned().sum()) == expected


@settings(max_examples=examples(60))
@given(rows(), st.integers(1, 3), st.integers(1, 5))
def test_processes_share_rows_in_equally_many_micro_batches(
    made: list[TrainingRow], size: int, number: int
) -> None:
    shares = [divide(made, size, rank=rank, number=number) for rank in range(number)]
    assert len({len(share) for share in shares}) == 1
    parts = [part for share in shares for part in share]
    assert {len(part) for part in parts} <= set(range(1, size + 1))
    learned = sum(int((row.labels != -100).sum()) for row in made)
    assert sum(int((row.labels != -100).sum()) for part in parts for row in part) == learned
    assert {row.where for part in parts for row in part} == {row.where for row in made}


@settings(max_examples=examples(60))
@given(rows(), st.integers(1, 60), st.integers(1, 5))
def test_micro_batches_of_tokens_are_as_full_as_they_may_be_on_every_process(
    made: list[TrainingRow], most: int, number: int
) -> None:
    shares = [divide(made, f"{most} tokens", rank=rank, number=number) for rank in range(number)]
    assert len({len(share) for share in shares}) == 1
    for share in shares:
        tokens = [sum(len(row.input_ids) for row in part) for part in share]
        assert all(count <= most or len(part) == 1 for count, part in zip(tokens, share, strict=True))
    if number == 1:  # the next row would have been too much
        for part, after in pairwise(shares[0]):
            assert sum(len(row.input_ids) for row in [*part, after[0]]) > most
    learned = sum(int((row.labels != -100).sum()) for row in made)
    assert sum(int((row.labels != -100).sum()) for s in shares for part in s for row in part) == learned
    assert divide([], f"{most} tokens") == []


@settings(max_examples=examples(60))
@given(
    st.integers(1, 40), st.integers(1, 9), st.integers(1, 30), st.integers(1, 3),
    st.one_of(st.integers(1, 9), st.integers(1, 90).map("{} tokens".format), st.just("auto")),
)  # fmt: skip
def test_no_micro_batch_of_a_run_is_longer_than_the_longest(
    count: int, batch_size: int, num_steps: int, number: int, size: int | str
) -> None:
    made = random_rows(count)
    ranks = [
        Steps(made, batch_size=batch_size, micro_batch_size=size, seed=3, rank=rank, num_processes=number)
        for rank in range(number)
    ]
    parts = list(ranks[0].lengths(num_steps))
    assert all(part.shape[1] == batch_size for part in parts)
    assert sum(map(len, parts)) == (min(num_steps, 1) if ranks[0].per_epoch == 1 else num_steps)
    tokens = [
        sum(len(row.input_ids) for row in part)
        for steps in ranks
        for step in range(1, num_steps + 1)
        for part in steps.micro_batches(step)
    ]
    assert max(tokens) <= ranks[0].longest_micro_batch(num_steps, size)
    whole = max(longest_micro_batch(part, size, number) for part in parts)
    assert ranks[0].longest_micro_batch(num_steps, size) == whole  # also where the rest is not looked at
    in_one = max(longest_micro_batch(part, batch_size) for part in parts)
    assert in_one == max(
        sum(len(row.input_ids) for row in ranks[0].rows_of(n)) for n in range(1, num_steps + 1)
    )
