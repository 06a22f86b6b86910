"""Rows without a question or an answer: an error, or left out, counted and named with `data.empty=skip`."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands import glmtune
from glmtune.data.convert import write_examples
from glmtune.data.formats import FORMATS
from glmtune.data.reader import read_dataset
from glmtune.data.sources import read_sources
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.workflows.rows import read_and_split

SKIP = Data(empty="skip")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(*rows: Any, name: str = "a.jsonl") -> Path:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Path(name)


def pair(question: Any, answer: Any = "a", **more: Any) -> dict[str, Any]:
    return {"prompt": question, "response": answer, **more}


def turns(*texts: Any) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]}


FULL = {
    "pair": pair("q"),
    "messages": turns("q", "a"),
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "firefly": {"conversation": [{"human": "q", "assistant": "a"}]},
}
EMPTY = {
    "pair": [
        pair(""), pair(" "), pair(None), pair("q", ""), pair("q", "\n"), pair("q", None),
        pair("q", float("nan")), pair("", ""), {},
        pair("q", history=[["q", ""]]), pair("q", history=[[None, "a"]]),
    ],
    "messages": [
        turns("", "a"), turns("q", ""), turns(None, "a"), turns("q", None), turns("q", "a", "", "a"),
        turns("q", " ", "q", "a"), {"messages": []}, {"messages": None}, {},
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": ""}]},
        {"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "a"}]},
        {"conversations": []},
    ],
    "firefly": [
        {"conversation": [{"human": "", "assistant": "a"}]},
        {"conversation": [{"human": "q", "assistant": None}]},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "row"), [(kind, row) for kind, rows in EMPTY.items() for row in rows])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_without_question_or_answer_is_left_out_of_every_format_counted_and_named(kind, row, place):
    rows = [FULL[kind], FULL[kind]]
    rows.insert(place, row)
    read = read_dataset(lines(*rows), SKIP)
    assert [example.where for example in read.examples] == [
        f"a.jsonl:{i + 1}" for i in range(3) if i != place
    ]
    assert read.empty == (f"a.jsonl:{place + 1}",)
    note = f"rows with an empty question or answer left out: 1 (first in a.jsonl:{place + 1})"
    assert [text for text in read.notes() if "left out" in text] == [note]


def test_a_row_with_a_thought_or_calls_and_no_text_has_an_answer():
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    talk = turns("q", None)
    talk["messages"][1] |= {"tool_calls": [call]}
    thought = turns("q", "")
    thought["messages"][1] |= {"reasoning_content": "hm"}
    assert len(read_dataset(lines(talk, thought), SKIP).examples) == 2


def test_a_question_after_the_last_answer_is_cut_and_not_an_empty_one():
    read = read_dataset(lines(turns("q", "a", "")), SKIP)
    assert (len(read.examples), read.num_cut, read.empty) == (1, 1, ())


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_empty_cells_of_a_table_are_left_out_too(suffix):
    cut = "," if suffix == ".csv" else "\t"
    rows = [("prompt", "response"), ("q", "a"), ("q", ""), ("", "a"), ("", "")]
    Path(f"a{suffix}").write_text("".join(cut.join(row) + "\n" for row in rows), encoding="utf-8")
    read = read_dataset(Path(f"a{suffix}"), SKIP)
    assert (len(read.examples), read.empty[0]) == (1, f"a{suffix}:3")


def test_without_the_setting_an_answer_is_needed_and_the_hint_leaves_such_rows_out():
    path = lines(pair("q"), pair("q", ""), pair("", "text to learn alone"), pair("q", None))
    with pytest.raises(
        DataError, match=r"a.jsonl:2: 'response' must be non-empty text, got '' \(and 1 more"
    ) as err:
        read_dataset(path, Data())
    assert err.value.hint.endswith("; or data.empty=skip drops it")
    assert len(read_dataset(path, SKIP).examples) == 1
    # one without a question is learned: that is how texts alone are trained on
    assert len(read_dataset(lines(pair("q"), pair("", "a")), Data()).examples) == 2


def test_a_fault_of_another_kind_stays_an_error():
    with pytest.raises(DataError, match="must be text") as err:
        read_dataset(lines(pair("q", ""), pair(["q"])), SKIP)
    assert str(err.value).startswith("a.jsonl:2")
    assert "data.empty" not in err.value.hint


def test_a_file_of_empty_rows_alone_is_refused():
    with pytest.raises(DataError, match="no question or no answer, here and in every other row") as err:
        read_dataset(lines(pair(""), pair("", "b")), SKIP)
    assert "data.empty=error" in err.value.hint
    assert len(read_dataset(lines(pair("", "a"), pair("", "b")), Data()).examples) == 2


def test_one_source_may_skip_and_another_not():
    first, second = (
        lines(pair("q", ""), pair("q"), name="a.jsonl"),
        lines(pair("q", ""), pair("q"), name="b.jsonl"),
    )
    with pytest.raises(DataError, match=r"b.jsonl:1") as err:
        read_sources(Data(train=[{"path": first, "empty": "skip"}, second]))
    assert "{path: b.jsonl, empty: skip}" in err.value.hint
    assert len(read_sources(Data(train=[first, second], empty="skip"))) == 2


def test_the_validation_rows_follow_the_setting_and_training_counts_both():
    train, held = lines(pair("q"), pair("q", "")), lines(pair("q"), pair(""), pair(""), name="b.jsonl")
    split = read_and_split(Data(train=train, validation=held, empty="skip"))
    assert (len(split.train), len(split.validation)) == (1, 1)
    assert split.num_empty == {"a.jsonl": 1, "b.jsonl": 2}


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_left_when_rows_are_skipped_is_written_in_every_format(to):
    examples = read_dataset(lines(pair("q"), pair("")), SKIP).examples
    write_examples(Path("b.jsonl"), examples, to)
    assert len(read_dataset(Path("b.jsonl"), Data()).examples) == 1


def test_the_command_counts_them():
    path = lines(pair("q"), pair("q", ""), pair("", "a"))
    shown = glmtune("data", "stats", path, "empty=skip", cwd=Path())
    assert "left out: empty          2 (first in a.jsonl:2)" in shown.stdout
    assert "empty=skip" in glmtune("data", "stats", path, cwd=Path()).stderr


@pytest.mark.parametrize("column", ["system", "input"])
def test_a_cell_that_is_neither_question_nor_answer_is_no_empty_row(column):
    row = {"instruction": "q", "output": "a", column: float("nan")}
    with pytest.raises(DataError, match=f"'{column}' must be text, got NaN"):
        read_dataset(lines(row), SKIP)
