"""Names of other programs lead to ours."""

import pytest

from glmtune.recipe.names import name_here


@pytest.mark.parametrize("name", ["dataset", "train_file"])
@pytest.mark.parametrize("value", ["a.json,b.jsonl", "a.json, b.jsonl", ["a.json", "b.jsonl"]])
def test_several_files_of_another_program_are_a_list_here(name: str, value: object) -> None:
    assert name_here(name, value) == "here that is data.train=[a.json,b.jsonl]"


def test_names_that_need_quotes_are_left_to_the_reader() -> None:
    assert name_here("dataset", ["a b.json", "c.json"]) == "here that is data.train=..."
