"""Statistics of a file, on rows whose counts are known."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from glmtune.data.stats import Lengths, measure_file
from glmtune.recipe.settings import Data


def stats(folder: Path, *rows: dict):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return measure_file(folder / "a.jsonl", Data())[0]


def test_every_count_of_a_small_file(tmp_path):
    talk = [{"from": "human", "value": "早"}, {"from": "gpt", "value": "早上好"}]
    call = [
        {"from": "human", "value": ""},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        {"from": "observation", "value": "x"},
        {"from": "gpt", "value": "y", "loss": False},
    ]
    found = stats(
        tmp_path,
        {"conversations": talk},
        {"conversations": talk, "system": "s"},
        {"conversations": [*talk, *talk], "tools": '[{"name": "f"}]'},
        {"conversations": [*call, {"from": "human", "value": "z"}]},
        {"conversations": talk},
        {"conversations": [talk[0], {"from": "gpt", "value": "你好"}]},
        {"conversations": talk[:1]},
    )
    assert (found.rows, found.format) == (6, "sharegpt")
    assert (found.with_history, found.with_system, found.with_tools, found.with_calls) == (1, 1, 1, 1)
    assert (found.unlearned, found.empty_questions, found.cut, found.unanswered) == (1, 1, 1, 1)
    assert (found.repeated, found.contradicting) == (1, 1)
    assert found.answers == Lengths(1, 2, 2, 2)
    assert found.characters == Lengths(4, 8, 8, 8)
    assert found.answer_characters == Lengths(3, 3, 3, 3)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=300))
def test_percentiles_are_lengths_that_so_many_rows_do_not_exceed(lengths):
    found = Lengths.of(lengths)
    assert found.longest == max(lengths)
    for percent, value in ((50, found.p50), (95, found.p95), (99, found.p99)):
        assert value in lengths
        assert sum(length <= value for length in lengths) * 100 >= percent * len(lengths)
        assert sum(length < value for length in lengths) * 100 < percent * len(lengths)
