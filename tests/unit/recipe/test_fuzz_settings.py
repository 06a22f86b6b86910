"""Any value for any setting is taken, and can be written down and read again, or refused in words."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from glmtune.errors import ConfigError
from glmtune.recipe import load_recipe, to_yaml
from glmtune.recipe.base import MAX_COUNT, MAX_SEED
from glmtune.recipe.describe import describe
from glmtune.strict import load_yaml

KINDS = {row.key: row.kind for row in describe()} | dict.fromkeys(("method", "train", "samples", "no"), "")
KINDS |= dict.fromkeys(("method.name", "objective.name"), "choice")
FITTING = {
    "int": st.integers(0, 100) | st.integers(0, 2**64),
    "float": st.floats(0, 1) | st.floats(0, 1e31),
    "bool": st.booleans(),
    "list": st.lists(st.text(max_size=4), max_size=3),
    "choice": st.just("lora"),
}
METHODS = ("full", "freeze", "lora", "adalora", "ptuning")
NUMBERS = st.one_of(
    st.integers(-3, 100),
    st.integers(),
    st.sampled_from([10**15, 10**16, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 10**4000]),
    st.floats(),
    st.sampled_from([0.1, 0.5, 1e-300, 1e30, 1e31, 1e308]),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(), max_size=4),  # half characters too
    st.sampled_from(["\0", "\udcff", "a" * 300, "~nobody-here", "9" * 30, "1e400", "nan", "null", "cpu"]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def value_for(key: str) -> st.SearchStrategy[tuple[str, Any]]:
    """A setting and a value: of its own kind as often as of any."""
    choices = KINDS[key].split(" | ")
    fitting = st.sampled_from(choices) if len(choices) > 1 else FITTING.get(choices[0], TEXTS)
    return st.tuples(st.just(key), fitting | VALUES)


def nested(key: str, value: Any, method: str) -> dict[str, Any]:
    recipe: dict[str, Any] = {"model": "glm-tiny", "method": {"name": method}}
    *groups, name = key.split(".")
    inner = recipe
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[name] = value
    return recipe


def check_settings(cases: int) -> Counter[str]:
    counts: Counter[str] = Counter()

    @seed(20)
    @settings(max_examples=cases, database=None, deadline=None)
    @given(st.sampled_from(sorted(KINDS)).flatmap(value_for), st.sampled_from(METHODS))
    def check(setting: tuple[str, Any], method: str) -> None:
        counts["tried"] += 1
        try:
            recipe = load_recipe(nested(*setting, method))
        except ConfigError as err:
            counts["refused"] += 1
            assert str(err)
            assert err.hint
            return
        counts["read"] += 1
        assert load_recipe(load_yaml(to_yaml(recipe))) == recipe

    check()
    return counts


def test_any_value_is_taken_or_refused() -> None:
    counts = check_settings(300)
    assert min(counts["read"], counts["refused"]) > 30, counts


@pytest.mark.slow
def test_any_value_is_taken_or_refused_many_times() -> None:
    counts = check_settings(3000)
    assert min(counts["read"], counts["refused"]) > 300, counts


@pytest.mark.parametrize("key", ["train.seed", "data.split_seed"])
def test_a_seed_beyond_64_bits_is_told_with_the_largest_there_is(key: str) -> None:
    group, name = key.split(".")
    assert load_recipe({"model": "m", group: {name: MAX_SEED}})
    for value in (MAX_SEED + 1, str(MAX_SEED + 1), 10**5000):
        with pytest.raises(ConfigError, match=f"{name}.* must be at most {MAX_SEED:,}"):
            load_recipe({"model": "m", group: {name: value}})


def test_a_count_that_would_overflow_is_told_with_the_largest_there_is() -> None:
    for key in ("train.steps", "train.batch_size", "samples.max_new_tokens", "data.max_tokens"):
        group, name = key.split(".")
        assert load_recipe({"model": "m", group: {name: MAX_COUNT}})
        with pytest.raises(ConfigError, match=f"{name} must be at most {MAX_COUNT:,}, got a number of"):
            load_recipe({"model": "m", group: {name: 10**30}})


def test_numbers_that_are_none_are_refused() -> None:
    for key in ("train.epochs", "train.lr", "method.alpha", "train.adam_epsilon"):
        group, name = key.split(".")
        for value in (float("inf"), float("nan"), ".inf"):
            with pytest.raises(ConfigError, match=f"{key}: "):
                load_recipe({"model": "m", group: {name: value}})
