"""ROUGE and BLEU-4 of one pair, computed in the order of rouge-chinese and nltk, so equal to the last bit.

Sources: https://github.com/Isaac-JL-Chen/rouge_chinese (rouge.py, rouge_score.py) and
https://github.com/nltk/nltk/blob/develop/nltk/translate/bleu_score.py (sentence_bleu, method3).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import exp, fsum, log
from typing import Any

_SENTENCE_END = re.compile("[。！？?](?= )")
_SIX_DOTS = re.compile(r"(\.{6})([^”’])")
_LONGEST = 4


def split_for_rouge(words: Sequence[str]) -> list[str]:
    """The words rouge-chinese counts in `" ".join(words)`.

    It cuts the text into sentences first. A sentence of nothing but white space counts as one empty word, and
    more than six dots fall into two words.
    """
    text = _SIX_DOTS.sub(r"\1\n\2", _SENTENCE_END.sub("\\g<0>\n", " ".join(words))).rstrip()
    return [word for sentence in text.split("\n") if sentence for word in sentence.split() or [""]]


def rouge_1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F-measure of distinct words, 0 to 1."""
    return _f_of_sets(set(prediction), set(reference))


def rouge_2(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F-measure of distinct pairs of neighbouring words, 0 to 1; of single words 0."""
    return _f_of_sets(*(set(pairwise(words)) for words in (prediction, reference)))


def rouge_l(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, 0 to 1; neither side may be empty."""
    common = count_common_subsequence(prediction, reference)
    return _f_measure(common / len(prediction), common / len(reference))


def count_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a whole row of its table at a time, as bits of an integer.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited": the bits cleared are the length.
    """
    places: dict[str, int] = {}
    for i, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << i
    row = every = (1 << len(first)) - 1
    for item in second:
        if matches := row & places.get(item, 0):
            row = (row + matches) | (row - matches)
    return len(first) - (row & every).bit_count()


def bleu_4(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """BLEU-4 with smoothing method 3, 0 to 1, over the items given: the characters of a string, or words."""
    matches = _count_matches(prediction, reference)
    if not matches[0]:
        return 0.0
    is_longer = len(prediction) > len(reference)
    brevity = 1.0 if is_longer else exp(1 - len(reference) / len(prediction))
    return brevity * exp(fsum(0.25 * log(share) for share in _smooth(matches, len(prediction))))


def _smooth(matches: Sequence[int], num_items: int) -> Iterator[float]:
    """The shares of runs of 1, 2 ... items that match; of none the first counts 1/2, the next 1/4."""
    nothing = 1
    for i, count in enumerate(matches):
        num_runs = max(1, num_items - i)
        if count == 0:
            nothing *= 2
        yield count / num_runs if count else 1 / (nothing * num_runs)


def _count_matches(prediction: Sequence[str], reference: Sequence[str]) -> list[int]:
    """How many runs of 1 to 4 items of the prediction the reference has too, each as often as it has it."""
    matches = [0] * _LONGEST
    for i in range(_LONGEST):
        in_prediction, in_reference = (_count_runs(items, i + 1) for items in (prediction, reference))
        common = in_prediction.keys() & in_reference.keys()
        if not common:  # so no longer run is common either
            break
        matches[i] = sum(min(in_prediction[run], in_reference[run]) for run in common)
    return matches


def _count_runs(items: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(items[start:] for start in range(length)), strict=False))


def _f_of_sets(prediction: set[Any], reference: set[Any]) -> float:
    common = len(prediction & reference)
    return _f_measure(common / max(1, len(prediction)), common / max(1, len(reference)))


def _f_measure(precision: float, recall: float) -> float:
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))
