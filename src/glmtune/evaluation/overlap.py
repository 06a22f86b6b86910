"""ROUGE and BLEU-4 of one pair, with the operations of rouge-chinese and nltk in their order: equal bits.

Sources: https://github.com/Isaac-JL-Chen/rouge_chinese (rouge.py, rouge_score.py) and
https://github.com/nltk/nltk/blob/develop/nltk/translate/bleu_score.py (sentence_bleu, method3).
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import exp, fsum, log
from typing import Any

_SENTENCE_END = re.compile("[。！？?](?= )")
_SIX_DOTS = re.compile(r"(\.{6})([^”’])")
_LONGEST = 4  # BLEU-4 compares runs of 1 to 4 items


def split_for_rouge(words: Sequence[str]) -> list[str]:
    """Return the words that rouge-chinese counts in `" ".join(words)`.

    rouge-chinese cuts the text into sentences first. A sentence of white space counts as one empty word, and
    more than six dots are split into two words.
    """
    text = _SIX_DOTS.sub(r"\1\n\2", _SENTENCE_END.sub("\\g<0>\n", " ".join(words))).rstrip()
    return [word for sentence in text.split("\n") if sentence for word in sentence.split() or [""]]


def rouge_1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F-measure of distinct words, 0 to 1."""
    return _f_of_sets(set(prediction), set(reference))


def rouge_2(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F-measure of distinct pairs of neighbouring words, 0 to 1; 0 for a single word."""
    return _f_of_sets(*(set(pairwise(words)) for words in (prediction, reference)))


def rouge_l(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F-measure of the longest common subsequence of words, 0 to 1; no side may be empty."""
    common = count_common_subsequence(prediction, reference)
    return _f_measure(common / len(prediction), common / len(reference))


def count_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    A whole row of the usual table is one integer, a bit per item of `first`; cleared bits count.
    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    positions: dict[str, int] = {}  # of each item in `first`, as bits
    for i, item in enumerate(first):
        positions[item] = positions.get(item, 0) | 1 << i
    row = every = (1 << len(first)) - 1
    for item in second:
        if matches := row & positions.get(item, 0):
            row = (row + matches) | (row - matches)
    return len(first) - (row & every).bit_count()


def bleu_4(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Return BLEU-4 with smoothing method 3, 0 to 1, over items: the characters of a string, or words."""
    matches = _count_matches(prediction, reference)
    if not matches[0]:
        return 0.0
    # precision of runs of 1 to 4 items; method 3 takes 1/2 of a match for the first without any, then 1/4 ...
    precisions, smoothing = [], 1
    for i, count in enumerate(matches):
        num_runs = max(1, len(prediction) - i)
        if count == 0:
            smoothing *= 2
        precisions.append(count / num_runs if count else 1 / (smoothing * num_runs))
    is_longer = len(prediction) > len(reference)
    brevity = 1.0 if is_longer else exp(1 - len(reference) / len(prediction))
    return brevity * exp(fsum(0.25 * log(precision) for precision in precisions))


def _count_matches(prediction: Sequence[str], reference: Sequence[str]) -> list[int]:
    """Count the runs of 1 to 4 items that both texts have, each as often as in the one with fewer of it."""
    matches = [0] * _LONGEST
    for i in range(_LONGEST):
        in_prediction, in_reference = (
            Counter(zip(*(items[start:] for start in range(i + 1)), strict=False))
            for items in (prediction, reference)
        )
        common = in_prediction.keys() & in_reference.keys()
        if not common:  # so no longer run is common either
            break
        matches[i] = sum(min(in_prediction[run], in_reference[run]) for run in common)
    return matches


def _f_of_sets(prediction: set[Any], reference: set[Any]) -> float:
    common = len(prediction & reference)
    return _f_measure(common / max(1, len(prediction)), common / max(1, len(reference)))


def _f_measure(precision: float, recall: float) -> float:
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))
