"""The data sets of `examples/`: made by `tools/examples`, and true to what their README says."""

from pathlib import Path
from typing import Any

import pytest
from tools.examples import adverts, build
from tools.glm_tiny import corpus

from glmtune.data.reader import read_examples, read_raw_rows
from glmtune.recipe.settings import Data

ROOT = Path(__file__).parents[2]

EXAMPLES = ROOT / "examples"
PAIRS = ("identity.json", "adverts.jsonl", "chat_history.jsonl")
NAMES = ("{{name}}", "{{author}}")


def rows(name: str) -> list[dict[str, Any]]:
    return [row.value for row in read_raw_rows(EXAMPLES / name)]


def held_out(name: str) -> str:
    stem, _, suffix = name.partition(".")
    return f"{stem}_heldout.{suffix}"


def bare(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def named(text: str) -> set[str]:
    return {name for name in NAMES if name in text}


@pytest.fixture(scope="module")
def known() -> tuple[set[str], set[str]]:
    """The questions and the answers of glm-tiny's own text."""
    found = [row for side in corpus.make(seed=0) for row in side]
    turns = [turn for row in found for turn in (*row.history, (row.prompt, row.response))]
    return {bare(question) for question, _ in turns}, {answer for _, answer in turns}


def test_the_generator_writes_exactly_the_committed_files(tmp_path: Path) -> None:
    build.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*PAIRS, *map(held_out, PAIRS), "general.jsonl"}
    assert [name for name in names if (tmp_path / name).read_bytes() != (EXAMPLES / name).read_bytes()] == []


def test_another_seed_gives_other_rows() -> None:
    first, second = build.make(seed=0), build.make(seed=1)
    assert all(made != first[name] for name, made in second.items())


@pytest.mark.parametrize("name", [*PAIRS, "general.jsonl", "alpaca.json"])
def test_no_question_stands_twice_and_none_is_held_out_as_well(name: str) -> None:
    pair = (name, held_out(name)) if name in PAIRS else (name,)
    found = [read_examples(EXAMPLES / each, Data()) for each in pair]
    asked = [example.messages[:-1] for side in found for example in side]
    assert [messages for messages in asked if asked.count(messages) > 1] == []


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("identity.json", 200, 270),
        ("identity_heldout.json", 40, 40),
        ("adverts.jsonl", 240, 240),
        ("adverts_heldout.jsonl", 40, 40),
        ("general.jsonl", 220, 220),
        ("chat_history.jsonl", 180, 260),
        ("chat_history_heldout.jsonl", 28, 30),
    ],
)
def test_a_file_has_the_rows_that_the_readme_tells(name: str, least: int, most: int) -> None:
    count = len(rows(name))
    assert least <= count <= most
    assert f"| `{name}` | {count} |" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_about_one_row_in_seven_is_not_about_identity_and_is_glm_tinys_own(
    known: tuple[set[str], set[str]],
) -> None:
    everything = rows("identity.json")
    other = [row for row in everything if not named(row["output"])]
    assert 0.12 < len(other) / len(everything) < 0.18
    assert [row for row in other if bare(row["instruction"]) not in known[0]] == []
    assert [row for row in other if row["output"] not in known[1]] == []


def test_the_general_rows_are_glm_tinys_training_rows_without_the_fact_that_is_asked_later() -> None:
    trained = {(row.prompt, row.response) for row in corpus.make(seed=0)[0]}
    general = [(row["prompt"], row["response"]) for row in rows("general.jsonl")]
    assert set(general) <= trained
    assert not [text for row in general for text in row if "日本" in text or "Japan" in text]


def test_the_demos_questions_are_trained_and_answered_with_both_names() -> None:
    answers = {row["instruction"]: row["output"] for row in rows("identity.json")}
    assert all(named(answers[question]) == set(NAMES) for question in ("你好，你是谁？", "你叫什么名字？"))


def test_only_answers_hold_names_to_fill_in_and_only_the_two() -> None:
    for row in [*rows("identity.json"), *rows("identity_heldout.json")]:
        rest = row["output"].replace(NAMES[0], "").replace(NAMES[1], "")
        assert not set("{}") & set(row["instruction"] + row["input"] + rest)


def test_held_out_identity_questions_are_asked_nowhere_else(known: tuple[set[str], set[str]]) -> None:
    questions = [row["instruction"] for row in rows("identity_heldout.json")]
    asked = known[0] | {bare(row["instruction"]) for row in rows("identity.json")}
    assert [question for question in questions if bare(question) in asked] == []
    assert set(corpus.IDENTITY_PROBES) < set(questions)
    assert all(named(row["output"]) for row in rows("identity_heldout.json"))


def test_held_out_adverts_combine_known_attributes_anew() -> None:
    train, test = (
        [adverts.values(row["content"]) for row in rows(name)]
        for name in ("adverts.jsonl", "adverts_heldout.jsonl")
    )
    assert not {frozenset(listed) for listed in train} & {frozenset(listed) for listed in test}
    assert {pair for listed in test for pair in listed} <= {pair for listed in train for pair in listed}


def test_every_advert_is_short_and_says_its_attributes_in_the_shops_voice() -> None:
    for row in [*rows("adverts.jsonl"), *rows("adverts_heldout.jsonl")]:
        assert len(row["summary"]) <= adverts.MOST_CHARACTERS
        assert all(value in row["summary"] for _, value in adverts.values(row["content"])[1:])
        assert row["summary"].startswith(("上新啦！", "小店新到", "朋友们，"))


def test_every_turn_of_a_talk_is_a_row_with_the_turns_before_it() -> None:
    for name in ("chat_history.jsonl", "chat_history_heldout.jsonl"):
        talk: list[list[str]] = []
        for row in rows(name):
            talk = talk if row["history"] else []
            assert row["history"] == talk
            talk = [*talk, [row["prompt"], row["response"]]]
            assert len(talk) <= 3


def test_no_two_talks_begin_alike() -> None:
    both = [*rows("chat_history.jsonl"), *rows("chat_history_heldout.jsonl")]
    first = [row["prompt"] for row in both if not row["history"]]
    assert len(first) == len(set(first))


def test_the_demos_phrase_is_in_no_row() -> None:
    phrase = corpus.DEMO_PHRASE
    assert [path.name for path in EXAMPLES.glob("*.json*") if phrase in path.read_text("utf-8")] == []
