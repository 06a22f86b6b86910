"""ROUGE and BLEU-4 of one pair: laws, and a slow plain table as oracle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.evaluation.overlap import bleu_4, count_common_subsequence, rouge_1, rouge_2, rouge_l

some_words = st.text("abcd", max_size=200)


def fill_table(first: str, second: str) -> int:
    """Length of the longest common subsequence, row by row."""
    row = [0] * (len(second) + 1)
    for a in first:
        above, row = row, [0]
        for j, b in enumerate(second):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
    return row[-1]


@given(some_words, some_words)
def test_the_common_subsequence_is_as_long_as_the_plain_table_says(first, second):
    assert count_common_subsequence(first, second) == fill_table(first, second)


@given(st.text("ab", min_size=1, max_size=8), st.text("ab", min_size=1, max_size=8))
def test_rouge_does_not_care_which_side_is_the_reference(first, second):
    for measure in (rouge_1, rouge_2, rouge_l):
        assert measure(first, second) == measure(second, first)


def test_bleu_of_texts_that_share_nothing_is_0():
    assert bleu_4("abc", "def") == 0


def test_bleu_of_an_answer_shorter_than_the_reference_pays_for_it():
    assert bleu_4("abcde", "abcdefghij") == pytest.approx(2.718281828**-1)
