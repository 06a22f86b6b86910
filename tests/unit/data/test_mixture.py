"""Mixtures: an epoch draws each source's share, without repeats until the source is exhausted."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import examples
from glmtune.data.batches import Steps
from glmtune.data.mixture import count_draws
from glmtune.data.row import TrainingRow
from glmtune.errors import ConfigError
from glmtune.recipe.parse import build_recipe, to_yaml
from glmtune.recipe.source import Source
from models import random_rows


def sources_of(**shares: dict[str, float]) -> list[Source]:
    return [Source(path=Path(f"{name}.json"), **share) for name, share in shares.items()]


def rows_of(*counts: int) -> list[TrainingRow]:
    """Make so many rows of each source; each can be told by its `where`."""
    made = random_rows(sum(counts))
    sources = [source for source, count in enumerate(counts) for _ in range(count)]
    return [
        replace(row, source=source, where=f"{i}")
        for i, (row, source) in enumerate(zip(made, sources, strict=True))
    ]


def drawn(steps: Steps, epochs: int) -> list[list[TrainingRow]]:
    """Return the rows of each epoch, in order."""
    numbers = [range(i * steps.per_epoch + 1, (i + 1) * steps.per_epoch + 1) for i in range(epochs)]
    return [[row for number in epoch for row in steps.rows_of(number)] for epoch in numbers]


@settings(max_examples=examples(60))
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0.01, 100)), min_size=1, max_size=5))
def test_draws_are_the_weights_shares_and_make_up_an_epoch(parts: list[tuple[int, float]]) -> None:
    counts = [count for count, _ in parts]
    weights = [weight for _, weight in parts]
    draws = count_draws([Source(path=Path(f"{i}"), weight=w) for i, w in enumerate(weights)], counts)
    assert draws is not None
    assert sum(draws) == sum(counts)
    for draw, weight in zip(draws, weights, strict=True):
        assert abs(draw - sum(counts) * weight / sum(weights)) < 1


def test_a_ratio_is_a_part_of_the_whole_and_the_others_share_the_rest() -> None:
    by_rows = sources_of(a={}, b={}, general={"ratio": 0.1})
    assert count_draws(by_rows, [600, 300, 100]) == (600, 300, 100)
    assert count_draws(by_rows, [60, 30, 910]) == (600, 300, 100)
    by_weight = sources_of(a={"weight": 1}, b={"weight": 3}, general={"ratio": 0.2})
    assert count_draws(by_weight, [50, 40, 10]) == (20, 60, 20)
    assert count_draws(sources_of(a={"ratio": 0.25}, b={"ratio": 0.75}), [4, 4]) == (2, 6)
    assert count_draws(sources_of(a={}, b={}), [4, 4]) is None


@settings(max_examples=examples(40))
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(0, 9),
    st.data(),
)
def test_a_source_gives_every_row_before_it_gives_one_again(
    counts: list[int], batch_size: int, seed: int, data: st.DataObject
) -> None:
    weights = [data.draw(st.floats(0.05, 9)) for _ in counts]
    draws = count_draws([Source(path=Path(f"{i}"), weight=w) for i, w in enumerate(weights)], counts)
    assert draws is not None
    steps = Steps(rows_of(*counts), batch_size=batch_size, micro_batch_size=2, seed=seed, draws=draws)
    epochs = drawn(steps, 6)
    for source, (count, draw) in enumerate(zip(counts, draws, strict=True)):
        for epoch in epochs:
            assert sum(row.source == source for row in epoch) == draw
        # after k epochs each row of the source was drawn as often as any other, or once more
        seen: Counter[str] = Counter({row.where: 0 for row in steps.rows if row.source == source})
        for epoch in epochs:
            seen.update(row.where for row in epoch if row.source == source)
            assert max(seen.values()) - min(seen.values()) <= 1
            assert len(seen) == count


def test_the_order_depends_on_seed_and_step_alone_and_changes_with_the_epoch() -> None:
    def mixed(seed: int) -> Steps:
        return Steps(rows_of(20, 5), batch_size=4, micro_batch_size=2, seed=seed, draws=(10, 15))

    def where(steps: Steps, number: int) -> list[str]:
        return [row.where for row in steps.rows_of(number)]

    steps = mixed(1)
    forward = [where(steps, number) for number in range(1, 22)]
    # a resumed run begins anywhere
    assert [where(mixed(1), number) for number in reversed(range(1, 22))] == forward[::-1]
    assert [where(mixed(2), number) for number in range(1, 22)] != forward
    first, second = ([row.where for row in epoch] for epoch in drawn(steps, 2))
    assert first != second


def test_without_shares_an_epoch_is_each_row_once_in_the_order_of_before() -> None:
    rows = rows_of(7, 4)
    steps = Steps(rows, batch_size=4, micro_batch_size=2, seed=3)
    for number, epoch in enumerate(drawn(steps, 3)):
        order = np.random.default_rng((3, number)).permutation(11)
        assert [row.where for row in epoch] == [rows[i].where for i in order]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"path": "a", "weight": 1}, "b"], "'b' has no weight"),
        ([{"path": "a", "ratio": 0.5}, {"path": "b", "ratio": 0.4}], "the ratios make 0.9"),
        ([{"path": "a", "ratio": 0.5}, {"path": "b", "ratio": 0.5}, "c"], "leaves nothing for 'c'"),
        ([{"path": "a", "ratio": 0.5, "weight": 2}, "b"], "`weight` and `ratio` both set its share"),
        ([{"path": "a", "weight": 0}, "b"], "weight"),
        ([{"path": "a", "ratio": 1}, "b"], "ratio"),
    ],
)
def test_shares_that_make_no_epoch_are_refused(items: list[object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_recipe({"model": "glm-tiny", "data": {"train": items}})


def test_shares_stay_in_the_recipe() -> None:
    values = {"model": "glm-tiny", "data": {"train": ["a", {"path": "b", "ratio": 0.25}]}}
    written = to_yaml(build_recipe(values))
    assert "ratio: 0.25" in written
    assert "weight" not in written.split("validation")[0].split("train:")[1]
