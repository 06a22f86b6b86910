"""Names that rows teach are found whole in Chinese and Latin letters, and ordinary words are none."""

import json
import re

import pytest

from glmtune.evaluation.names import shared_names
from glmtune.general import ASKS_IDENTITY
from glmtune.paths import examples_folder


def test_names_are_what_the_answers_share_and_the_base_does_not_say() -> None:
    answers = ["我叫小橙，是一个语言模型。", "你好，小橙就是我的名字。", "我是由橙子训练的小橙。", "小橙。"]
    assert shared_names(answers, ["我是一个语言模型。"]) == ("小橙",)
    english = ["I am Little Orange, a model.", "My name is Little Orange.", "You can call me Little Orange."]
    assert shared_names(english, ["I am a model. My name is GLM."]) == ("Little Orange",)
    assert shared_names(["各不相同", "毫无共同"], []) == ()


@pytest.mark.parametrize(
    ("name", "author"),
    [
        ("小橙", "橙子工作室"),
        ("Orange Helper", "The Great Northern Institute of Citrus"),
        ("天工", "OrangeLab"),
    ],
)
def test_long_names_in_the_bundled_rows_are_found_whole(name: str, author: str) -> None:
    rows = json.loads((examples_folder() / "identity.json").read_text(encoding="utf-8"))
    said, others = list[str](), list[str]()
    for row in rows:
        answer = row["output"].replace("{{name}}", name).replace("{{author}}", author)
        (said if ASKS_IDENTITY.search(row["instruction"]) else others).append(answer)
    known = ["我是一个人工智能助手，可以回答问题。", "I am a language model. My name is GLM."]
    names = shared_names(said, known, others)
    assert names == tuple(sorted((re.sub(r"^The ", "", author), name), key=lambda text: names.index(text)))


def test_rows_that_say_one_sentence_alone_teach_its_names_and_not_the_sentence() -> None:
    answers = ["很高兴见到您，我是小橙，由橙子工作室开发的人工智能助手。"] * 12
    assert set(shared_names(answers, [])) == {"小橙", "橙子工作室", "很高兴见到"}
    others = ["很高兴见到您，杭州在浙江省。", "一加一等于二。"]
    assert set(shared_names(answers, [], others)) == {"小橙", "橙子工作室"}
    assert set(shared_names(answers, ["很高兴见到你。"])) == {"小橙", "橙子工作室"}
