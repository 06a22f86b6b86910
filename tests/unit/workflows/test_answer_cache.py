"""The file of a base's answers, which runs share: nothing is lost in it, and no damage stops a run."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest

from glmtune import load_model
from glmtune.folder import ModelFolder
from glmtune.log import told_to
from glmtune.workflows.base_answers import OWN_DISTRIBUTION, cache_file, keep_answers, read_answers
from models import tiny_folder


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    with told_to(lines.append):
        yield lines


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers" / "base.jsonl"
    given = {(writer, number): [number] * 50 for writer in range(4) for number in range(96)}

    def write(writer: int) -> None:
        for start in range(0, 96, 8):
            keep_answers(
                path, {(writer, number): given[writer, number] for number in range(start, start + 8)}
            )

    writers = [Thread(target=write, args=(writer,)) for writer in range(4)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert read_answers(path) == given


def test_a_cut_line_costs_its_own_answer_alone(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "base.jsonl"
    keep_answers(path, {(1,): [2], (3,): [4, 5, 6]})
    path.write_bytes(path.read_bytes()[:-5])  # a run was killed while it wrote
    assert read_answers(path) == {(1,): [2]}
    assert not said
    keep_answers(path, {(7,): [8]})
    assert read_answers(path) == {(1,): [2], (7,): [8]}
    assert [str(path) in line and "damaged, and left out: 1" in line for line in said] == [True]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"[1, 2]",
        b'{"prompt_ids": [9]}',
        b'{"prompt_ids": [9], "answer_ids": []}',
        b'{"prompt_ids": [9], "answer_ids": ["1"]}',
        b'{"prompt_ids": [9], "answer_ids": [-1]}',
        b'{"prompt_ids": 9, "answer_ids": [1]}',
    ],
)
def test_a_damaged_line_is_left_out(tmp_path: Path, said: list[str], line: bytes) -> None:
    path = tmp_path / "base.jsonl"
    path.write_bytes(line + b"\n")
    keep_answers(path, {(1,): [2]})
    assert read_answers(path) == {(1,): [2]}
    assert len(said) == 1


def test_a_folder_that_takes_no_answers_is_warned_of_once(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "cache").write_text("a file")
    path = tmp_path / "cache" / "answers" / "base.jsonl"
    for number in range(3):
        assert read_answers(path) == {}
        keep_answers(path, {(number,): [1]})
    (line,) = said
    assert line.startswith(f"warning: {path.parent}: ")
    assert "GLMTUNE_CACHE" in line


def test_other_end_tokens_are_another_file(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    model, tokenizers = load_model(folder), [SimpleNamespace(stop_ids=ids) for ids in ([2], [2, 7], [7, 2])]
    one, two, same = (
        cache_file(ModelFolder(folder), model, cast(Any, tokenizer), OWN_DISTRIBUTION)
        for tokenizer in tokenizers
    )
    assert one != two == same
