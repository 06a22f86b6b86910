"""Turns in an odd order are read as they stand and named; a file of answers to nothing is refused."""

import json
from pathlib import Path

import pytest

from glmtune.data.reader import read_dataset
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.workflows.rows import read_and_split

ROLES = {"s": "system", "u": "user", "a": "assistant"}


def turns(letters: str, **keys: object) -> str:
    """A row with a turn for each letter; a capital A is an answer that is not learned."""
    unlearned = {"A": {"loss": False}}
    row = [{"role": ROLES[letter.lower()], "content": "x", **unlearned.get(letter, {})} for letter in letters]
    return json.dumps({"messages": row, **keys}) + "\n"


def write(folder: Path, *rows: str) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(turns(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("rows", "num_unasked", "where"),
    [
        (("ua", "ua"), 0, 0),
        (("ua", "aua"), 1, 2),
        (("ua", "saaua", "sa"), 3, 2),
        (("ua", "Aua"), 0, 0),
        (("Aa", "ua"), 1, 1),
    ],
)
def test_answers_with_no_question_are_counted_and_the_first_is_named(tmp_path, rows, num_unasked, where):
    path = write(tmp_path, *rows)
    text = f"answers with no question before them, learned all the same: {num_unasked}"
    expected = [f"{text} (first in {path}:{where})"] if num_unasked else []
    assert read_dataset(path, Data()).warnings() == expected


@pytest.mark.parametrize("rows", [("a",), ("sa", "aau"), ("aAu",)])
def test_a_file_in_which_no_answer_has_a_question_is_refused(tmp_path, rows):
    with pytest.raises(DataError, match="an answer with no question before it") as caught:
        read_dataset(write(tmp_path, *rows), Data())
    form = json.loads(caught.value.hint[caught.value.hint.index("{") :])
    (tmp_path / "b.json").write_text(json.dumps([{**form, "response": "x"}]), encoding="utf-8")
    assert read_dataset(tmp_path / "b.json", Data()).warnings() == []


@pytest.mark.parametrize(("row", "is_told"), [("uuaa", True), ("uua", True), ("uaa", True), ("suaua", False)])
def test_two_turns_of_one_speaker_in_a_row_are_told(tmp_path, row, is_told):
    path = write(tmp_path, "ua", row)
    text = f"rows in which one speaker has two turns in a row, read as they stand: 1 (first in {path}:2)"
    assert read_dataset(path, Data()).notes() == [text] * is_told


def test_a_training_warns_of_both_and_of_a_validation_file_with_the_same_content(tmp_path):
    path = write(tmp_path, "ua", "aua", "ua")
    (tmp_path / "b.jsonl").write_bytes(path.read_bytes())
    for other, is_same in ((path, True), (tmp_path / "b.jsonl", True), (write_other(tmp_path), False)):
        read = read_and_split(Data(train=path, validation=other))
        warnings = [note.text for note in read.notes if note.is_warning]
        assert warnings[0] == f"{path}: {read_dataset(path, Data()).warnings()[0]}"
        assert any("the validation file is the training file" in text for text in warnings) == is_same


def write_other(folder: Path) -> Path:
    (folder / "c.jsonl").write_text(turns("ua"), encoding="utf-8")
    return folder / "c.jsonl"
