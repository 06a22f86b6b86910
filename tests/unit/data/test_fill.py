"""Words for placeholders: in every text of a row, once, and never without being told."""

import json
from pathlib import Path

import pytest

from glmtune.data.reader import read_dataset
from glmtune.errors import ConfigError
from glmtune.recipe import Data, load_recipe
from glmtune.workflows.early import training_recipe
from glmtune.workflows.rows import read_and_split

ROWS = [
    {"prompt": "你叫{{name}}吗？", "response": "是，我叫{{name}}，由{{author}}训练。"},
    {"prompt": "1+1?", "response": "2", "history": [["Who made you?", "{{author}} made {{other}}."]]},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS), "utf-8")
    return path


def texts(path: Path, **words: str) -> list[list[str]]:
    return [[m.content for m in row.messages] for row in read_dataset(path, Data(fill=words)).examples]


def test_words_stand_in_every_turn_and_are_not_read_again(rows: Path) -> None:
    assert texts(rows, name="{{author}}", author='明"明\\n') == [
        ["你叫{{author}}吗？", '是，我叫{{author}}，由明"明\\n训练。'],
        ["Who made you?", '明"明\\n made {{other}}.', "1+1?", "2"],
    ]


def test_the_reading_tells_what_was_filled_and_warns_of_what_was_not(rows: Path) -> None:
    dataset = read_dataset(rows, Data(fill={"author": "A"}))
    assert "filled in by data.fill: {{author}} in 2 rows" in dataset.notes()
    [warning] = dataset.warnings()
    assert "{{name}} in 1 (first in" in warning and "{{other}} in 1 (first in" in warning
    assert "data.fill.name=... data.fill.other=... puts a word there" in warning
    assert not read_dataset(rows, Data(fill={"name": "N", "author": "A", "other": "O"})).warnings()


def test_rows_of_a_validation_file_are_filled_too(rows: Path, tmp_path: Path) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_bytes(rows.read_bytes())
    split = read_and_split(
        Data(train=rows, validation=heldout, fill={"name": "N", "author": "A", "other": "O"})
    )
    assert split.validation[0].messages[0].content == "你叫N吗？"


def test_a_word_that_no_row_has_a_place_for_is_an_error(rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.fill\.nam: no training row has \{\{nam\}\}"):
        read_and_split(Data(train=rows, fill={"nam": "N"}))


@pytest.mark.parametrize(
    ("words", "fill"),
    [
        (["name=小橙", "author=7"], {"name": "小橙", "author": "7"}),
        (["data.fill.name=a: b", "author=no"], {"name": "a: b", "author": "no"}),
    ],
)
def test_a_recipe_that_lists_names_takes_them_bare(words: list[str], fill: dict[str, str]) -> None:
    recipe = load_recipe({"model": "m", "data": {"fill": {"name": None, "author": "A"}}}, words)
    assert recipe.data.fill == fill


def test_a_setting_comes_before_a_placeholder_of_its_name() -> None:
    recipe = load_recipe({"model": "m", "data": {"fill": {"model": "word"}}}, ["model=mine"])
    assert (recipe.model, recipe.data.fill) == ("mine", {"model": "word"})


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        ({"name": None, "author": "  "}, r"data\.fill: no word for \{\{name\}\} and \{\{author\}\}"),
        ({"a b": "x"}, r"'a b' is no name of a placeholder"),
        ({"name": 3}, r"data\.fill\.name: "),
        ({"name": "\ud800"}, "half a character"),
    ],
)
def test_words_that_cannot_be_filled_in_are_errors(fill: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe({"model": "m", "data": {"fill": fill}})


def test_the_identity_recipe_is_found_from_any_folder_and_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["model=glm-tiny", "name=小橙"]
    with pytest.raises(ConfigError, match=r"no word for \{\{author\}\}") as error:
        training_recipe("recipes/identity.yaml", words)
    assert "glmtune train RECIPE model=MODEL author=..." in error.value.hint
    recipe = training_recipe("recipes/identity.yaml", [*words, "author=橙子工作室"])
    assert recipe.output == Path("runs/glm-tiny-identity-lora")
    split = read_and_split(recipe.data)
    assert split.train[0].messages[1].content == "我是小橙，由橙子工作室训练的智能助手。"
    assert "{{" not in "".join(m.content for row in (*split.train, *split.validation) for m in row.messages)
