"""Scores: an example worked by hand, the libraries as oracle, and what an empty answer counts."""

import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import official_scores
from fuzz import examples
from glmtune.errors import ConfigError, DataError
from glmtune.evaluation.metrics import SCORE_NAMES, VARIANTS, score, score_pair, score_variants, with_scale
from texts import long_text, pairs


def test_a_pair_worked_by_hand():
    # jieba: 我 爱 北京 / 我 爱 上海. Words: 2 of 3 match, so F1 = 2/3. Word pairs: 1 of 2.
    # Longest common subsequence: 2 of 3.
    # Characters: 我爱北京 / 我爱上海 share 2 of 4 single, 1 of 3 double, 0 of 2 triple (smoothed to 1/(2*2)),
    # 0 of 1 quadruple (1/(4*1)): BLEU-4 = (2/4 * 1/3 * 1/4 * 1/4) ** (1/4).
    scores = score_pair("我爱北京", "我爱上海", "thudm")
    assert scores["rouge-1"] == pytest.approx(200 / 3, abs=1e-4)
    assert scores["rouge-2"] == pytest.approx(50, abs=1e-4)
    assert scores["rouge-l"] == pytest.approx(200 / 3, abs=1e-4)
    assert scores["bleu-4"] == round(100 * (1 / 96) ** 0.25, 4)


def test_bleu_of_the_chatglm3_variant_is_over_words_from_0_to_1():
    # Words: 2 of 3, pairs 1 of 2, triples 0 of 1 (1/(2*1)), quadruples 0 of none (counted as 1: 1/(4*1)).
    assert score_pair("我爱北京", "我爱上海", "chatglm3")["bleu-4"] == pytest.approx((1 / 24) ** 0.25)


@pytest.mark.parametrize(("variant", "best_bleu"), [("thudm", 100.0), ("chatglm3", 1.0)])
def test_the_reference_itself_scores_best(variant, best_bleu):
    text = "这条裤子版型宽松，走路带风。"
    assert score([text], [text], variant) == {
        "rouge-1": 100.0,
        "rouge-2": 100.0,
        "rouge-l": 100.0,
        "bleu-4": best_bleu,
        "num_empty": 0,
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_score_is_shown_with_the_highest_that_there_is(variant):
    text = "这条裤子版型宽松，走路带风。"
    for name, best in score_pair(text, text, variant).items():
        assert with_scale(best, name, variant, digits=0) == f"{best:.0f} of {best:.0f}"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("empty", ["", " ", "\n", "\t\n ", "\u3000", "\x1c"])
def test_an_empty_prediction_scores_0(variant, empty):
    assert score_pair(empty, "你好", variant) == dict.fromkeys(SCORE_NAMES, 0.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_prediction_is_counted_and_lowers_the_mean(variant):
    full, half = score(["你好"], ["你好"], variant), score(["你好", ""], ["你好", "你好"], variant)
    assert half["num_empty"] == 1
    assert all(half[name] == full[name] / 2 for name in SCORE_NAMES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_reference_is_an_error_with_its_place(variant):
    with pytest.raises(DataError, match=r"references\[1\]: is empty"):
        score(["a", "b"], ["a", " "], variant)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="2 predictions for 1 references"):
        score(["a", "b"], ["a"])


def test_empty_lists_are_refused():
    with pytest.raises(DataError, match="no predictions"):
        score([], [])


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'bleu'") as caught:
        score(["a"], ["a"], "bleu")
    assert caught.value.hint == "choose one of: thudm, chatglm3"


def test_only_the_chatglm3_variant_strips_the_texts():
    assert score_pair("你好\n", "你好", "chatglm3") == score_pair("你好", "你好", "chatglm3")
    assert score_pair("你好\n", "你好", "thudm")["bleu-4"] < score_pair("你好", "你好", "thudm")["bleu-4"]


@settings(max_examples=examples(500))
@given(pairs(), st.sampled_from(sorted(VARIANTS)))
@example(("很好。\n好", "很好。 \n\n好"), "thudm")  # a sentence of white space alone counts as an empty word
@example(("嗯.......好.............", "嗯......。好.............”"), "thudm")  # a word of dots falls into two
@example(("？。!……”，", "。”？……!"), "chatglm3")
@example((" \n 你好\n", "\n\u3000\n你好 "), "thudm")
@example((" \n 你好\n", "\n\u3000\n你好 "), "chatglm3")
def test_any_pair_scores_as_the_packages_score_it_to_the_last_bit(pair, variant):
    assert score_pair(*pair, variant) == official_scores.score_pair(*pair, variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_of_2000_characters_score_as_the_packages_score_them(variant):
    prediction, reference = long_text(1), long_text(2)
    mixed = prediction[:700] + reference[300:1600]
    assert score_pair(mixed, reference, variant) == official_scores.score_pair(mixed, reference, variant)


@settings(max_examples=examples(20))
@given(st.lists(pairs(), min_size=1, max_size=30))
def test_all_pairs_together_score_as_the_packages_score_them_to_the_last_bit(many):
    predictions, references = zip(*many, strict=True)
    for variant, scores in score_variants(predictions, references).items():
        assert scores == {**official_scores.score(predictions, references, variant), "num_empty": 0}


@settings(max_examples=examples(20))
@given(st.lists(pairs(), min_size=1, max_size=5))
def test_all_variants_together_score_as_each_alone(many):
    predictions, references = ["", *(pair[0] for pair in many)], ["好", *(pair[1] for pair in many)]
    expected = {variant: score(predictions, references, variant) for variant in VARIANTS}
    assert score_variants(predictions, references) == expected


@given(st.text(max_size=30), st.text(max_size=30).filter(str.strip), st.sampled_from(sorted(VARIANTS)))
def test_any_pair_of_texts_is_scored_between_0_and_100(prediction, reference, variant):
    assert all(0 <= value <= 100 for value in score_pair(prediction, reference, variant).values())


def test_scoring_writes_nothing_to_the_terminal():
    code = "from glmtune.evaluation.metrics import score; score(['你好'], ['你好'])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_scoring_loads_neither_nltk_nor_rouge_chinese_and_importing_no_jieba():
    code = (
        "import sys; from glmtune.evaluation.metrics import score;"
        "assert not {'jieba', 'torch'} & set(sys.modules);"
        "score(['你好'], ['你好'], 'thudm'), score(['你好'], ['你好'], 'chatglm3');"
        "assert not {'nltk', 'rouge_chinese', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
