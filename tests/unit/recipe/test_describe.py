"""The settings in both languages: the same settings, names and figures."""

import re

from glmtune.recipe.describe import CHINESE_TEXTS, Description, describe
from glmtune.recipe.method import METHOD_SETTINGS
from glmtune.strict import load_yaml


def facts(row: Description) -> tuple[str, set[str], set[str]]:
    """What both languages must say: the setting, the names in its text, and the figures."""
    figures = re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*(?:e-\d+)?(?!\w)", row.text)
    return row.key, set(re.findall(r"`([^`]+)`", row.text)), set(figures)


def test_every_setting_has_a_chinese_text_that_says_the_same() -> None:
    english, chinese = list(describe()), list(describe("zh"))
    assert [facts(row) for row in chinese] == [facts(row) for row in english]
    for one, other in zip(english, chinese, strict=True):
        assert re.search("[\u4e00-\u9fff]", other.text), other.key
        assert one.default == other.default or one.default in ("empty", "required")


def test_a_text_of_one_methods_own_goes_before_the_shared_one() -> None:
    dropouts = [row.text for row in describe("zh") if row.key == "method.dropout"]
    assert [("前缀" in text) for text in dropouts] == [False, False, True]


def test_no_chinese_text_is_left_over() -> None:
    texts = load_yaml(CHINESE_TEXTS.read_text(encoding="utf-8"))
    used = [next(path for path in row.paths if path in texts) for row in describe("zh")]
    rates = [f"{row.paths[0]}.lr" for row in describe("zh") if row.rate is not None]
    assert {*used, *rates} == set(texts)


def test_the_rows_of_a_name_have_the_name_as_type_and_the_true_default() -> None:
    names = [(row.kind, row.default) for row in describe() if row.key == "method.name"]
    assert names == [(name, "lora") for name in METHOD_SETTINGS]


def test_only_words_for_types_are_translated_and_a_folder_is_no_file() -> None:
    kinds = {row.key: row.kind for row in describe("zh")}
    assert (kinds["data.transcripts"], kinds["data.train"]) == ("turns | text", "文件 | 列表")
    assert kinds["base"] == kinds["output"] == "文件夹"
    assert kinds["train.gradient_checkpointing"] == "是或否 | 整数 | auto"
    assert kinds["train.micro_batch_size"] == "整数 | N tokens | auto"


def test_the_form_of_a_text_is_shown_among_the_types() -> None:
    kinds = {row.key: row.kind for row in describe()}
    assert kinds["train.micro_batch_size"] == "int | N tokens | auto"
