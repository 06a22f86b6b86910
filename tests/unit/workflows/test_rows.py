"""Which rows are read, and how long they may be: told by settings, else by the model's context."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from glmtune import load_tokenizer
from glmtune.errors import DataError
from glmtune.families import FAMILIES, context_of
from glmtune.recipe import Data, Evaluation, Recipe, load_recipe
from glmtune.recipe.parse import build_part, read_values
from glmtune.workflows.rows import (
    EncodedRows,
    EvaluationRows,
    encode_test_rows,
    longest_answer,
    training_rows,
)
from tiny import tiny_ice, tiny_json, tiny_sentencepiece, tiny_tiktoken

CONTEXT = 96
LONG = "春" * 300

HF = {"GLM-4-hf": ("glm", "glm4"), "GLM-4-0414": ("glm4", "glm4_0414"), "GLM-4.5": ("glm4_moe", "glm45")}
TOKENIZERS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "ChatGLM-6B": (tiny_ice, {}),
    "ChatGLM2/ChatGLM3": (tiny_sentencepiece, {"model_type": "chatglm"}),
    "GLM-4": (tiny_tiktoken, {"model_type": "chatglm", "eos_token_id": [1, 2, 3]}),
    **{
        family: (lambda folder, name=name: tiny_json(folder, name), {"model_type": kind})
        for family, (kind, name) in HF.items()
    },
}  # fmt: skip


def folder_of(family: str, folder: Path, context: int | None = CONTEXT) -> Path:
    """A tokenizer with a config that names a context and little else."""
    write, config = TOKENIZERS[family]
    write(folder)
    file = folder / "config.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    named = {} if context is None else {FAMILIES[family].context_key: context}
    file.write_text(json.dumps(known | config | named), encoding="utf-8")
    return folder


def rows_file(folder: Path, answers: list[str], name: str = "rows.jsonl") -> Path:
    lines = [json.dumps({"prompt": f"{i}", "response": answer}) for i, answer in enumerate(answers)]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder / name


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folder_of("ChatGLM2/ChatGLM3", tmp_path / "model")


class Given(NamedTuple):
    """The settings that rows are read, encoded and asked by."""

    data: Data
    evaluate: Evaluation


def given(rows: Path, *words: str) -> Given:
    values = read_values({"data": {"train": rows, "validation": rows}}, words)
    parts = build_part(Data, values["data"], "data"), build_part(Evaluation, values.get("evaluate", {}))
    return Given(*parts)


def read(base: Path, settings: Given) -> EncodedRows:
    return training_rows(load_tokenizer(base), settings.data)


def ask(base: Path, settings: Given | Recipe) -> EvaluationRows:
    tokenizer = load_tokenizer(base)
    num_new = longest_answer(tokenizer, settings.data, settings.evaluate)
    return encode_test_rows(tokenizer, settings.data, num_new=num_new)


def lengths(rows: EncodedRows) -> list[int]:
    return [len(row.input_ids) for row in rows.train.rows]


def warnings(found: EncodedRows | EvaluationRows) -> list[str]:
    """What is said of rows beyond the context, once a file."""
    return [note.text for note in found.notes if note.is_warning and "was made for" in note.text]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_limit_is_the_models_context_where_that_is_shorter(family: str, tmp_path: Path) -> None:
    base = folder_of(family, tmp_path / "model")
    assert context_of(base) == CONTEXT
    rows = rows_file(tmp_path, ["好", "早", LONG])
    found = read(base, given(rows))
    assert max(lengths(found)) <= CONTEXT < found.train.report.percentiles.longest
    assert any(f"limit max_tokens {CONTEXT} (the model's context)" in note.text for note in found.notes)
    assert not warnings(found)


@pytest.mark.parametrize("context", [None, 1024, 8192])
def test_a_longer_context_leaves_the_default(context: int | None, tmp_path: Path) -> None:
    base = folder_of("ChatGLM2/ChatGLM3", tmp_path / "model", context)
    found = read(base, given(rows_file(tmp_path, ["好", "早", LONG])))
    assert max(lengths(found)) == found.train.report.percentiles.longest
    assert any("limit max_tokens 1,024 (the default)" in note.text for note in found.notes)


PARTS = ["data.max_source_tokens=64", "data.max_target_tokens=512"]


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("ChatGLM2/ChatGLM3", ["data.max_tokens=1024"]),
        ("ChatGLM2/ChatGLM3", PARTS),
        ("ChatGLM2/ChatGLM3", ["data.encoding=chatglm3", *PARTS]),
        ("ChatGLM-6B", ["data.encoding=thudm", *PARTS]),
        ("GLM-4", ["data.encoding=glm4", *PARTS]),
    ],
    ids=["whole", "parts", "chatglm3", "thudm", "glm4"],
)
def test_rows_beyond_the_context_are_counted_and_the_settings_named_there_cut_them(
    family: str, words: list[str], tmp_path: Path
) -> None:
    base = folder_of(family, tmp_path / "model")
    rows = rows_file(tmp_path, ["好", "早", "在", LONG])
    found = read(base, given(rows, *words))
    said = f"1 of 4 are longer than the {CONTEXT} tokens that the model was made for (longest"
    assert [text.partition(" rows: ")[0] for text in warnings(found)] == ["training", "validation"]
    assert all(f"{said} {max(lengths(found))})" in text for text in warnings(found))
    mended = re.findall(r"data\.\S+=\d+", warnings(found)[0])
    cut = read(base, given(rows, *words, *mended))
    assert not warnings(cut)
    assert len(cut.train.rows) == 4


def test_most_rows_beyond_the_context_are_an_error_whose_hint_helps(base: Path, tmp_path: Path) -> None:
    rows = rows_file(tmp_path, [LONG, LONG, "好"])
    with pytest.raises(DataError, match=rf"67% of 3 rows .* max_tokens {CONTEXT} \(the model's") as caught:
        read(base, given(rows))
    assert "beyond its context the model gets worse" in caught.value.hint
    for word in ("data.max_tokens=1024", "data.overlong=cut_any"):
        assert word.partition("=")[0] in caught.value.hint
        read(base, given(rows, word))


def test_questions_and_their_answers_fit_into_the_context_by_default(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "asked.json"
    rows.write_text(json.dumps([{"prompt": text, "response": "好"} for text in ("早", LONG)]))
    found = ask(base, given(rows))
    settings = given(rows)
    assert longest_answer(load_tokenizer(base), settings.data, settings.evaluate) == CONTEXT // 2
    assert max(len(question.prompt_ids) for question in found.rows) <= CONTEXT // 2
    where = f"limit max_tokens 48 (the model's context of {CONTEXT}, less 48 for the answer)"
    assert any(where in note.text for note in found.notes)
    assert not warnings(found)


def test_a_file_and_the_rows_held_out_of_it_have_names_of_their_own(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "asked.json"
    rows.write_text(json.dumps([{"prompt": "早", "response": "好"}] * 4))
    held_out = Given(Data(train=rows), Evaluation())
    whole = Given(Data(train=rows, test=rows), Evaluation())
    assert (ask(base, held_out).name, len(ask(base, held_out).rows)) == ("asked-heldout", 1)
    assert (ask(base, whole).name, len(ask(base, whole).rows)) == ("asked", 4)


@pytest.mark.parametrize(
    "words",
    [
        ["data.max_tokens=512"],
        ["data.max_source_tokens=512", "data.max_target_tokens=64"],
        ["evaluate.max_new_tokens=512"],
        ["data.max_tokens=512", "evaluate.max_new_tokens=90"],
    ],
    ids=["question", "parts", "answer", "both"],
)
def test_questions_whose_answers_may_go_beyond_it_are_counted_before_the_first_and_the_words_there_help(
    words: list[str], base: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "asked.json"
    rows.write_text(json.dumps([{"prompt": text, "response": "好"} for text in ("早", LONG)]))
    (said,) = warnings(ask(base, given(rows, *words)))
    assert "tokens of an answer, are longer than the 96 tokens that the model was made for" in said
    mended = re.findall(r"(?:data|evaluate)\.\S+=\d+", said)
    assert not warnings(ask(base, given(rows, *words, *mended)))


def test_a_context_with_room_for_both_changes_nothing(tmp_path: Path) -> None:
    base = folder_of("ChatGLM2/ChatGLM3", tmp_path / "model", 2048)
    settings = given(rows_file(tmp_path, ["好"]))
    assert longest_answer(load_tokenizer(base), settings.data, settings.evaluate) == 512
    assert any("limit max_tokens 1,024 (the default)" in note.text for note in ask(base, settings).notes)


# How many rows


def test_at_most_200_rows_of_a_validation_file_are_read_and_the_plan_says_how_to_read_all(
    base: Path, tmp_path: Path
) -> None:
    rows = rows_file(tmp_path, [str(i) for i in range(250)])
    settings = given(rows)
    found = read(base, settings)
    assert (len(found.train.rows), len(found.validation.rows)) == (250, 200)
    places = [row.where for row in found.validation.rows]
    assert places == [row.where for row in read(base, settings).validation.rows]
    assert places != [row.where for row in found.train.rows[:200]]
    (line,) = [note.text for note in found.notes if "200 of 250 to validate (seed 42" in note.text]
    (word,) = re.findall(r"data\.max_validation_rows=\d+", line)
    assert len(read(base, given(rows, word)).validation.rows) == 250


def test_held_out_rows_are_all_read_unless_fewer_are_asked_for(base: Path, tmp_path: Path) -> None:
    rows = rows_file(tmp_path, [str(i) for i in range(230)])
    words = ["data.validation=null", "data.holdout_rows=210"]
    assert len(read(base, given(rows, *words)).validation.rows) == 210
    fewer = read(base, given(rows, *words, "data.max_validation_rows=30"))
    assert (len(fewer.train.rows), len(fewer.validation.rows)) == (20, 30)
    assert any(
        "210 held out (seed 42); the loss is that of 30 of them (" in note.text for note in fewer.notes
    )


@pytest.mark.parametrize("count", [2, 3, 5])
def test_of_a_tiny_file_one_row_is_held_out_and_the_plan_says_that_it_tells_little(
    count: int, base: Path, tmp_path: Path
) -> None:
    found = read(base, given(rows_file(tmp_path, ["好"] * count), "data.validation=null"))
    assert len(found.validation.rows) == 1
    rows = "1 row" if count == 2 else f"{count - 1} rows"
    said = "1 held out (seed 42): the loss of 1 row tells little, data.validation=FILE names more"
    assert found.notes[0].text.endswith(f"{rows} to train on; {said}")


@pytest.mark.parametrize("word", ["data.max_test_rows=2", "evaluate.max_rows=2"])
def test_the_test_rows_are_the_first_so_many_under_both_names(word: str, base: Path, tmp_path: Path) -> None:
    rows = rows_file(tmp_path, list("一二三"))
    recipe = load_recipe({"model": base}, [f"data.test={rows}", word])
    assert [question.reference for question in ask(base, recipe).rows] == ["一", "二"]


def test_the_plan_says_how_many_rows_are_trained(base: Path, tmp_path: Path) -> None:
    found = read(base, given(rows_file(tmp_path, list("一二三四")), "data.max_rows=3"))
    assert len(found.train.rows) == 3
    assert "the first 3 of 4 rows (data.max_rows) to train on" in found.notes[0].text


def test_without_test_rows_an_evaluation_answers_the_validation_file_whole(
    base: Path, tmp_path: Path
) -> None:
    """Also where it is the training file, and where the loss is taken over fewer."""
    rows = rows_file(tmp_path, list("一二三四"))
    assert len(ask(base, given(rows, "data.max_validation_rows=2")).rows) == 4
