"""Several sources of training rows: the rows, their order and split, and the errors and hints."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.data.reader import read_dataset
from glmtune.data.sources import read_sources
from glmtune.errors import ConfigError, DataError
from glmtune.recipe import Data, Source, load_recipe, to_yaml
from glmtune.recipe.describe import describe
from glmtune.strict import load_yaml
from glmtune.workflows.resuming import require_resumable, with_full_paths
from glmtune.workflows.rows import SplitRows, data_hash, hash_rows, read_and_split

ANSWERS = st.lists(st.text(st.characters(categories=["L"]), min_size=1, max_size=3), min_size=1, max_size=5)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, *answers: str, question: str = "prompt", answer: str = "response") -> Path:
    rows = [{question: f"{name} {i}", answer: text} for i, text in enumerate(answers)]
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    Path(name).write_text(text, encoding="utf-8")
    return Path(name)


def told(read: SplitRows, *, warnings: bool = False) -> list[str]:
    return [note.text for note in read.notes if note.is_warning == warnings]


@settings(max_examples=10, deadline=None, database=None)
@given(st.lists(ANSWERS, min_size=1, max_size=3))
def test_the_rows_are_those_of_each_source_in_turn_with_its_number_and_their_places(files):
    paths = [write(f"{i}.json{'l' * (i % 2)}", *answers) for i, answers in enumerate(files)]
    alone = [read_dataset(path, Data()).examples for path in paths]
    found = [example for read in read_sources(Data(train=paths)) for example in read.examples]
    assert [e.messages for e in found] == [e.messages for each in alone for e in each]
    assert [e.where for e in found] == [e.where for each in alone for e in each]
    assert [e.source for e in found] == [i for i, each in enumerate(alone) for _ in each]


@pytest.mark.parametrize("given", [["a.jsonl"], ("a.jsonl",), [{"path": "a.jsonl"}], {"path": "a.jsonl"}])
def test_one_path_as_a_list_is_that_path(given: Any) -> None:
    path = write("a.jsonl", *"abcdef")
    assert Data(train=given) == Data(train=path)
    assert read_and_split(Data(train=given)) == read_and_split(Data(train=path))
    assert hash_rows(load_recipe({"model": "m", "data.train": given}).data)["train_sha256"] == data_hash(path)


@pytest.mark.parametrize(
    "word",
    [
        "[a.json,b.jsonl]",
        "[a.json, {path: b.jsonl, max_rows: 5, ignore_columns: [id]}]",
        "{path: b.jsonl, prompt_column: null}",
        '["/data/a.json", "hf:owner/name:train"]',
    ],
)
def test_a_word_a_recipe_and_a_run_name_the_same_sources(word: str) -> None:
    recipe = load_recipe({"model": "m"}, [f"data.train={word}"])
    assert recipe.data.train == load_recipe({"model": "m", "data": {"train": load_yaml(word)}}).data.train
    assert load_recipe(load_yaml(to_yaml(recipe))) == recipe == load_recipe(recipe)
    full = with_full_paths(recipe)
    assert all(s.path.is_absolute() or str(s.path).startswith("hf:") for s in full.data.sources)
    assert [s.reading for s in full.data.sources] == [s.reading for s in recipe.data.sources]


def test_a_file_whose_name_looks_like_a_list_is_a_file() -> None:
    write("[a,b]", "c")
    assert load_recipe({"model": "m"}, ["data.train=[a,b]"]).data.train == Path("[a,b]")


BAD = [
    ([], "data.train: an empty list", "data.train=my.json"),
    (["a.json", "./a.json"], "data.train: 'a.json' is named twice", "name it once"),
    (["a.json", 5], "data.train.1: a file or a group of settings, got 5", "data.train=[a.json,b.json]"),
    ([{"max_rows": 5}], "data.train.0.path: missing", "glmtune settings data.train"),
    (
        ["a", {"path": "b", "share": 2}],
        "data.train.1.share: unknown setting",
        "known here: path, max_rows",
    ),
    ([{"path": "b", "max_tokens": 64}], "data.train.0.max_tokens: unknown setting", "data.max_tokens=64"),
    ([{"path": "b", "max_row": 3}], "data.train.0.max_row: unknown", "did you mean `max_rows` in that item?"),
    ([{"path": "b", "max_samples": 3}], "data.train.0.max_samples: unknown", "`max_rows` in that item?"),
    ([{"path": "b", "max_rows": 0}], "data.train.0.max_rows: input should be greater", "data.train"),
    ([{"path": "b", "charset": "utf-9"}], "data.train.0.charset: unknown character set 'utf-9'", "choose"),
    (["a", "b\tc.json"], "data.train.1.path: b\\tc.json: in double quotes", "single quotes"),
]


@pytest.mark.parametrize(("value", "message", "hint"), BAD)
def test_a_bad_list_is_refused_with_its_item_and_a_cure(value, message, hint):
    with pytest.raises(ConfigError) as caught:
        load_recipe({"model": "m", "data": {"train": value}})
    assert str(caught.value).startswith(message)
    assert hint in caught.value.hint


def test_a_source_has_columns_charset_and_a_limit_of_its_own() -> None:
    write("a.jsonl", *"abc")
    write("b.jsonl", *"defg", question="q2", answer="a2")
    Path("c.csv").write_bytes("prompt,response,id\n你好,再见,1\n".encode("gb18030"))
    named = {"path": "b.jsonl", "prompt_column": "q2", "response_column": "a2", "max_rows": 2}
    sources = ["a.jsonl", named, Source(path=Path("c.csv"), charset="gb18030", ignore_columns=("id",))]
    read = read_and_split(Data(train=sources, validation=write("v.jsonl", *"xyz12")))
    assert [e.messages[-1].content for e in read.train] == [*"abcde", "再见"]
    assert [e.source for e in read.train] == [0, 0, 0, 1, 1, 2]
    assert told(read)[:4] == [
        "a.jsonl, b.jsonl, c.csv: 6 rows to train on; v.jsonl: 5 to validate",
        "a.jsonl: 3 of 3 rows to train on",
        "b.jsonl: 2 of 4 rows to train on",
        "c.csv: 1 of 1 row to train on",
    ]
    assert "c.csv: read as GB18030, not as UTF-8" in told(read)


def test_a_source_can_take_back_what_data_names_for_the_others() -> None:
    write("a.jsonl", "a", question="q2", answer="a2")
    write("b.jsonl", "b")
    unnamed = {"path": "b.jsonl", "prompt_column": None, "response_column": None}
    data = Data(train=["a.jsonl", unnamed], prompt_column="q2", response_column="a2")
    assert [e.messages[-1].content for read in read_sources(data) for e in read.examples] == ["a", "b"]


def test_rows_are_held_out_of_all_sources_together() -> None:
    write("a.jsonl", *map(str, range(150)))
    write("b.jsonl", *map(str, range(150)))
    read = read_and_split(Data(train=["a.jsonl", "b.jsonl"]))
    assert (len(read.train), len(read.validation)) == (285, 15)
    assert {e.source for e in read.validation} == {0, 1}
    assert not {e.where for e in read.train} & {e.where for e in read.validation}
    assert told(read)[0] == "a.jsonl, b.jsonl: 285 rows to train on; 15 held out (seed 42)"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_settings_list_what_a_source_can_have_of_its_own(language: Any) -> None:
    (text,) = [row.text for row in describe(language) if row.key == "data.train"]
    assert not [name for name in Source.model_fields if name != "path" and f"`{name}`" not in text]


def test_a_source_of_which_no_row_is_trained_on_is_a_warning_with_a_cure() -> None:
    write("a.jsonl", *map(str, range(10)))
    write("b.jsonl", *map(str, range(10)))
    write("v.jsonl", *map(str, range(5)))
    data = Data(train=["a.jsonl", "b.jsonl"], validation="v.jsonl", max_rows=10)
    (warning,) = told(read_and_split(data), warnings=True)
    assert warning.startswith("b.jsonl: 0 of 10 rows to train on: ")
    (item,) = re.findall(r"\{.*?\}", warning)
    named = load_yaml(item.replace("...", "3"))
    limited = [{**named, "path": path} for path in ("a.jsonl", named["path"])]
    read = read_and_split(data.model_copy(update={"train": Data(train=limited).train}))
    assert Counter(e.source for e in read.train) == {0: 3, 1: 3}
    assert "b.jsonl: 3 of 10 rows to train on" in told(read)


def test_a_source_whose_rows_are_all_held_out_is_a_warning() -> None:
    write("a.jsonl", *map(str, range(10)))
    write("b.jsonl", "b")
    reads = [
        read_and_split(Data(train=["a.jsonl", "b.jsonl"], holdout_rows=5, split_seed=seed))
        for seed in range(20)
    ]
    warned = [told(read, warnings=True) for read in reads if 1 not in {e.source for e in read.train}]
    assert warned
    assert all(each == ["b.jsonl: 0 of 1 row to train on: all are held out"] for each in warned)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"path": "b.jsonl", "prompt_column": "q2"}, "data.train.1: b.jsonl: data.response_column: not set"),
        ("none.jsonl", "none.jsonl: cannot be read"),
        ("folder", "folder: is a folder, a file is needed"),
        ("empty.jsonl", "empty.jsonl: is empty"),
        ("broken.jsonl", "broken.jsonl:2: "),
        ("hf:", "hf:: not the name of a Hub data set"),
    ],
)
def test_an_error_names_the_source_that_it_is_about(bad, error):
    write("a.jsonl", "a")
    write("b.jsonl", "b")
    Path("folder").mkdir()
    Path("empty.jsonl").touch()
    Path("broken.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n', encoding="utf-8")
    with pytest.raises((ConfigError, DataError)) as caught:
        read_and_split(Data(train=["a.jsonl", bad]))
    assert str(caught.value).startswith(error)


OTHER_COLUMNS = [
    ({"frage": "f", "antwort": "c"}, {}),
    ({"meine frage": "f", "die antwort": "c", "1": ""}, {"max_rows": 1}),
    ({"frage": "f", "response": "c"}, {"prompt_column": "q", "response_column": "response"}),
    ({"q": "f", "response": "c"}, {"history_column": None}),
    ({"prompt": "f", "response": "c", "context": "x"}, {}),
    ({"prompt": "f", "response": "c", "image url": "x", "id": 1}, {"ignore_columns": ["id"]}),
    ({"prompt": "Human: a\nAssistant: b\nHuman: f", "response": "c"}, {}),
]


@pytest.mark.parametrize(("row", "own"), OTHER_COLUMNS)
def test_a_hint_of_one_source_among_several_helps_that_one_and_leaves_the_others(row, own):
    write("a.jsonl", "a")
    Path("c d.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    sources = ["a.jsonl", {"path": "c d.jsonl", **own}]
    with pytest.raises((ConfigError, DataError)) as caught:
        read_sources(Data(train=sources))
    hint = caught.value.hint
    assert "data." not in hint.replace("data.train", "")
    items = [load_yaml(item) for item in re.findall(r"\{.*?\}", hint)]
    assert items
    for item in items:
        assert item == {**item, **{key: own[key] for key in own.keys() & {"max_rows", "history_column"}}}
        filled = dict(zip(("prompt_column", "response_column"), row, strict=False))
        named = {key: filled[key] if value == "..." else value for key, value in item.items()}
        read = read_sources(Data(train=["a.jsonl", named]))
        assert [e.messages[-1].content for found in read for e in found.examples] == ["a", "c"]


def test_a_character_set_among_several_sources_is_named_for_one() -> None:
    write("a.jsonl", "a")
    Path("c.csv").write_bytes(
        "prompt,response\n你好，请问今天天气怎么样,再见，祝你今天愉快\n".encode("gb18030")
    )
    with pytest.raises(DataError) as caught:
        read_sources(Data(train=["a.jsonl", "c.csv"]))
    assert "{path: c.csv, charset: gb18030}" in caught.value.hint


@pytest.mark.parametrize("word", ["[a.jsonl,b.jsonl]", "a.jsonl,b.jsonl", "?.jsonl"])
def test_only_who_asks_for_training_rows_is_told_to_train_on_several(word: str) -> None:
    write("a.jsonl", "a")
    write("b.jsonl", "b")
    with pytest.raises(DataError, match="one file is needed") as caught:
        read_and_split(load_recipe({"model": "m", "data": {"train": "a.jsonl", "validation": word}}).data)
    assert caught.value.hint.startswith("join them first")
    with pytest.raises(DataError, match="one file is needed") as caught:
        read_sources(Data(train=Path(word)))
    assert caught.value.hint.startswith("train on all of them: data.train=[a.jsonl,b.jsonl]; or join them")
    with pytest.raises(DataError, match="one file is needed") as caught:
        read_sources(Data(train=("a.jsonl", word)))
    assert caught.value.hint.startswith("name each in its place: a.jsonl, b.jsonl; or join them")


def test_a_validation_file_among_the_training_files_and_one_twice_are_told() -> None:
    write("a.jsonl", *"abcdef")
    write("b.jsonl", *"ghijkl")
    Path("c.jsonl").write_bytes(Path("a.jsonl").read_bytes())
    read = read_and_split(Data(train=["a.jsonl", "b.jsonl", "c.jsonl"], validation="b.jsonl"))
    assert told(read, warnings=True) == [
        "c.jsonl: the same file as a.jsonl: its rows are trained on once more",
        "the validation file is a training file, b.jsonl: its loss will not show forgetting or overfitting",
    ]


def test_a_run_is_resumed_on_the_same_files_and_a_changed_one_is_named(tmp_path: Path) -> None:
    paths = [write("a.jsonl", "a", "b"), write("b.jsonl", "c", "d")]
    recipe = load_recipe({"model": "glm-tiny", "data": {"train": paths}})
    run = tmp_path / "run"
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / "recipe.yaml").write_text(to_yaml(with_full_paths(recipe)), encoding="utf-8")
    (run / "env.json").write_text(json.dumps(hash_rows(recipe.data)), encoding="utf-8")
    require_resumable(recipe, run)
    for word in ("train=[b.jsonl, a.jsonl]", "train=[b.jsonl]", "train=[a.jsonl, b.jsonl, c.jsonl]"):
        other = load_recipe(recipe, [f"data.{word}", "train.lr=1"])
        with pytest.raises(ConfigError, match=r"run: data\.train is .* in this run, .* here") as caught:
            require_resumable(other, run)
        assert str(other.data.sources[-1].path.resolve()) in str(caught.value).partition(" in this run, ")[2]
    with pytest.raises(ConfigError, match=r"run: data\.validation is null in this run, .*b\.jsonl. here"):
        require_resumable(load_recipe(recipe, ["data.validation=b.jsonl"]), run)
    limited = load_recipe(recipe, ["data.train=[a.jsonl, {path: b.jsonl, max_rows: 1}]"])
    with pytest.raises(ConfigError, match=r"run: data\.train is .* in this run, .* here") as caught:
        require_resumable(limited, run)
    word = next(word for word in shlex.split(caught.value.hint) if word.startswith("data.train="))
    assert load_recipe({"model": "m"}, [word]).data == with_full_paths(limited).data
    write("b.jsonl", "c", "e")
    with pytest.raises(ConfigError, match=r"run: the training file b\.jsonl has changed since"):
        require_resumable(recipe, run)
    with pytest.raises(ConfigError, match=r"run: the training file b\.jsonl has changed since"):
        require_resumable(load_recipe(recipe, ["train.lr=1"]), run)
