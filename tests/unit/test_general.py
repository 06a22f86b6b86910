"""The general prompts: distinct, of our own, mixed from the first on, and in the package."""

import json
import tomllib
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import pytest
from tools.glm_tiny import corpus

from glmtune.data.reader import read_examples
from glmtune.general import (
    CATEGORIES,
    LANGUAGES,
    UNRELATED,
    GeneralPrompt,
    held_out_prompts,
    replay_prompts,
    teaches_identity,
)
from glmtune.paths import examples_folder
from glmtune.recipe import Data

ROOT = Path(__file__).parents[2]
MOST_SHARED = 0.2
"""Jaccard overlap of two prompts' character triples from which they read as one prompt twice."""


def triples(text: str) -> frozenset[str]:
    """The text's triples of characters, of words for a text in Latin letters; shorter texts whole."""
    letters = [c for c in text.lower() if c.isalnum() or c == " "]
    parts = letters if any(c >= "\u4e00" for c in letters) else "".join(letters).split()
    return frozenset("".join(parts[i : i + 3]) for i in range(max(1, len(parts) - 2)))


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def of_turns(prompts: tuple[GeneralPrompt, ...]) -> list[tuple[str, frozenset[str]]]:
    return [(turn, triples(turn)) for prompt in prompts for turn in prompt.turns]


def test_a_prompt_is_what_its_name_says() -> None:
    everything = replay_prompts() + held_out_prompts()
    for prompt in everything:
        assert prompt.category in CATEGORIES, prompt.name
        assert prompt.language in LANGUAGES, prompt.name
        has_chinese = any("\u4e00" <= c <= "\u9fff" for turn in prompt.turns for c in turn)
        assert has_chinese == (prompt.language == "zh"), prompt.name
        assert (len(prompt.turns) > 1) == (prompt.category == "multi_turn"), prompt.name
        assert all(turn == turn.strip() and turn for turn in prompt.turns), prompt.name


@pytest.mark.parametrize(("prompts", "least"), [(replay_prompts, 300), (held_out_prompts, 100)])
def test_names_are_distinct_and_count(prompts, least) -> None:
    names = [prompt.name for prompt in prompts()]
    cells = Counter((prompt.language, prompt.category) for prompt in prompts())
    expected = {
        f"{language}-{category}-{number:02}"
        for (language, category), count in cells.items()
        for number in range(1, count + 1)
    }
    assert len(names) == len(set(names)) >= least
    assert set(names) == expected


@pytest.mark.parametrize("prompts", [replay_prompts, held_out_prompts])
def test_every_prefix_is_mixed(prompts) -> None:
    found = prompts()
    for end in range(1, len(found) + 1):
        categories = Counter(prompt.category for prompt in found[:end])
        languages = Counter(prompt.language for prompt in found[:end])
        assert max(categories.values()) - min(categories[c] for c in CATEGORIES) <= 1, end
        assert abs(languages["zh"] - languages["en"]) <= 1, end


def test_no_two_prompts_are_wordings_of_one() -> None:
    turns = of_turns(replay_prompts() + held_out_prompts())
    alike = [(a, b) for (a, one), (b, two) in combinations(turns, 2) if overlap(one, two) > MOST_SHARED]
    assert not alike


def test_the_measure_of_likeness_finds_wordings_of_one() -> None:
    for a, b in (
        ("为什么高压锅煮饭比普通锅快？", "为什么高压锅煮饭会比普通锅快呢？"),
        ("How do headphones cancel noise?", "How do headphones cancel noise, please?"),
    ):
        assert overlap(triples(a), triples(b)) > MOST_SHARED


def test_none_is_a_row_of_the_examples_or_of_the_small_model() -> None:
    files = [path for path in examples_folder().iterdir() if path.suffix in {".json", ".jsonl"}]
    asked = {
        message.content
        for path in files
        for row in read_examples(path, Data())
        for message in row.messages
        if message.role == "user"
    }
    asked |= {turn for rows in corpus.make() for row in rows for turn in (row.prompt, *dict(row.history))}
    asked |= set(corpus.IDENTITY_PROBES)
    ours = [turn for prompt in replay_prompts() + held_out_prompts() for turn in prompt.turns]
    assert not asked & set(ours)
    theirs = [triples(text) for text in sorted(set(corpus.IDENTITY_PROBES))]
    mine = of_turns(tuple(prompt for prompt in held_out_prompts() if prompt.category == "identity"))
    assert not [turn for (turn, one), two in product(mine, theirs) if overlap(one, two) > MOST_SHARED]


def test_questions_for_the_name_are_apart_from_those_that_have_no_use_for_it() -> None:
    asked = [prompt for prompt in held_out_prompts() if prompt.category == "identity"]
    unrelated = [prompt for prompt in held_out_prompts() if prompt.category in UNRELATED]
    assert {prompt.language for prompt in asked} == set(LANGUAGES)
    assert {prompt.language for prompt in unrelated} == set(LANGUAGES)
    assert not teaches_identity(turn for prompt in unrelated for turn in prompt.turns)


def test_rows_that_teach_an_identity_are_known_by_their_questions() -> None:
    rows = json.loads((examples_folder() / "identity.json").read_text(encoding="utf-8"))
    assert teaches_identity(row["instruction"] for row in rows)
    adverts = (examples_folder() / "adverts.jsonl").read_text(encoding="utf-8").splitlines()
    assert not teaches_identity(json.loads(line)["content"] for line in adverts)
    assert teaches_identity([*["请介绍杭州。"] * 99, "你叫什么名字？"])
    assert not teaches_identity([*["请介绍杭州。"] * 100, "你叫什么名字？"])
    assert not teaches_identity([])


def test_the_wheel_holds_the_prompts() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert "src/glmtune" in included  # with every file in it that git does not ignore
