"""Held-out rows: any size works, the same seed draws the same rows, nothing is lost."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.data.example import Example
from glmtune.data.split import count_holdout, split_holdout
from glmtune.errors import ConfigError, DataError
from glmtune.recipe.settings import Data


def rows(num_rows: int) -> list[Example]:
    return [Example((), f"train.jsonl:{number}") for number in range(1, num_rows + 1)]


def line(example: Example) -> int:
    return int(example.where.partition(":")[2])


@given(st.integers(2, 500), st.integers(0, 2**32))
def test_each_row_is_on_one_side_in_file_order(num_rows, seed):
    train, held = split_holdout(rows(num_rows), Data(split_seed=seed))
    assert sorted([*map(line, train), *map(line, held)]) == list(range(1, num_rows + 1))
    assert [*map(line, train)] == sorted(map(line, train))
    assert [*map(line, held)] == sorted(map(line, held))


@pytest.mark.parametrize(
    ("num_rows", "num_held"), [(2, 1), (20, 1), (39, 1), (40, 2), (1000, 50), (4000, 200), (114_599, 200)]
)
def test_five_percent_at_least_1_at_most_200_rows_are_held_out(num_rows, num_held):
    assert count_holdout(num_rows, Data()) == num_held


def test_the_number_of_held_out_rows_can_be_set():
    train, held = split_holdout(rows(10), Data(holdout_rows=4))
    assert (len(train), len(held)) == (6, 4)


def test_the_same_seed_holds_out_the_same_rows():
    assert split_holdout(rows(300), Data()) == split_holdout(rows(300), Data())


def test_the_draw_is_the_one_recorded_here():
    assert [line(e) for e in split_holdout(rows(100), Data())[1]] == [2, 10, 13, 20, 68]


def test_another_seed_holds_out_other_rows():
    assert split_holdout(rows(300), Data())[1] != split_holdout(rows(300), Data(split_seed=7))[1]


def test_one_row_is_an_error_that_asks_for_a_validation_file():
    with pytest.raises(DataError, match=r"^train\.jsonl: 1 row cannot be split") as caught:
        split_holdout(rows(1), Data(train=Path("train.jsonl")))
    assert "data.validation" in caught.value.hint


def test_holding_out_everything_is_an_error():
    with pytest.raises(ConfigError, match=r"data\.holdout_rows: 10 of 10 rows") as caught:
        split_holdout(rows(10), Data(holdout_rows=10))
    assert "at most 9" in caught.value.hint
