"""Words are the very ones jieba cuts."""

import json
import subprocess
import sys
from math import inf, log
from pathlib import Path

import jieba
import pytest
from hypothesis import example, given, settings

from fuzz import examples
from glmtune.evaluation.words import Lexicon, cut
from texts import long_text, texts

ROOT = Path(__file__).parents[3]


@settings(max_examples=examples(1000))
@given(texts())
@example("")
@example(" \r\n\n\u3000")
@example("工信处女干事每月经过下属科室都要亲口交代24口交换机等技术性器件的安装工作")
@example("他来到了网易杭研大厦")  # 杭研 is in no dictionary
@example("......。\r\n？a......b")
def test_any_text_is_cut_as_jieba_cuts_it(text):
    assert list(cut(text)) == list(jieba.cut(text))


@pytest.mark.parametrize("seed", range(20))
def test_a_long_text_is_cut_as_jieba_cuts_it(seed):
    assert list(cut(long_text(seed))) == list(jieba.cut(long_text(seed)))


def test_the_example_adverts_are_cut_as_jieba_cuts_them():
    for line in (ROOT / "examples/adverts.jsonl").read_text(encoding="utf-8").splitlines():
        for text in json.loads(line).values():
            assert list(cut(text)) == list(jieba.cut(text))


def test_the_whole_dictionary_weighs_as_jieba_weighs_it():
    jieba.initialize()
    known, total = jieba.dt.FREQ, jieba.dt.total
    lexicon = Lexicon()
    lexicon.learn("".join(known))
    assert lexicon.weights == {
        word: log(count) - log(total) if count else -inf for word, count in known.items()
    }
    assert lexicon.unknown_weight == log(1) - log(total)


def test_the_order_in_which_texts_come_does_not_matter():
    first, second = "南京市长江大桥", "长江大桥南京市"
    there, back = Lexicon(), Lexicon()
    for lexicon, words in ((there, (first, second)), (back, (second, first))):
        for text in words:
            lexicon.learn(text)
    assert there.weights == back.weights


def test_threads_that_learn_together_cut_as_one():
    code = (
        "import json, sys; from concurrent.futures import ThreadPoolExecutor;"
        "from glmtune.evaluation.words import cut; sys.setswitchinterval(1e-6);"
        "texts = json.load(sys.stdin);"
        "print(json.dumps(list(ThreadPoolExecutor(8).map(cut, texts))))"
    )
    texts = [long_text(seed, 50) for seed in range(64)]
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(texts), check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [list(jieba.cut(text)) for text in texts]


def test_cutting_neither_builds_nor_reads_jieba_s_own_cache():
    code = (
        "import jieba; from glmtune.evaluation.words import cut; cut('你好'); assert not jieba.dt.initialized"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
