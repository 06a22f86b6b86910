"""Scores of answers against reference texts, equal to those of the official scripts to the last rounding.

Both scripts take ROUGE over jieba words; they differ in BLEU-4, in its scale and in what is stripped.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

from glmtune.errors import ConfigError, DataError

Scores = dict[str, float]

SCORE_NAMES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


@dataclass(frozen=True, slots=True)
class Variant:
    """What one official script does with a pair of texts."""

    prepare: Callable[[str], str]
    bleu: Callable[[str, str], float]


def score(predictions: Sequence[str], references: Sequence[str], variant: str = "thudm") -> Scores:
    """Mean scores over all pairs, and `num_empty`, how many predictions were empty: these count as 0.

    `rouge-1`, `rouge-2`, `rouge-l` are F-measures x100 over jieba words. `bleu-4` is x100 over characters in
    `thudm` (ptuning/main.py) and 0-1 over jieba words in `chatglm3` (finetune_demo/finetune_hf.py). Raises
    `DataError` for lists of different lengths, no pairs, or an empty reference, which no answer can match.
    """
    _check_pairs(predictions, references)
    pairs = [score_pair(*pair, variant=variant) for pair in zip(predictions, references, strict=True)]
    means = {name: fmean(scores[name] for scores in pairs) for name in SCORE_NAMES}
    return {**means, "num_empty": sum(is_empty(prediction) for prediction in predictions)}


def score_pair(prediction: str, reference: str, variant: str = "thudm") -> Scores:
    """Scores of one answer, rounded as its script rounds them; an empty answer scores 0."""
    if variant not in VARIANTS:
        raise ConfigError(f"variant: {variant!r} is unknown", hint=f"choose one of: {', '.join(VARIANTS)}")
    if is_empty(reference):
        raise _empty_reference("the reference")
    if is_empty(prediction):
        return dict.fromkeys(SCORE_NAMES, 0.0)
    chosen = VARIANTS[variant]
    prediction, reference = chosen.prepare(prediction), chosen.prepare(reference)
    return {**_rouge(prediction, reference), "bleu-4": chosen.bleu(prediction, reference)}


def is_empty(text: str) -> bool:
    """Whether a text holds no word: nothing but white space. The official scripts crash on such an answer."""
    return not text.strip()


def _check_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise DataError(
            f"{len(predictions)} predictions for {len(references)} references",
            hint="give one reference for each prediction, in the same order",
        )
    if not predictions:
        raise DataError("there are no predictions to score", hint="give at least one pair")
    for index, reference in enumerate(references):
        if is_empty(reference):
            raise _empty_reference(f"references[{index}]")


def _empty_reference(place: str) -> DataError:
    return DataError(
        f"{place}: is empty, so no answer can be compared with it", hint="leave out pairs without a reference"
    )


def _rouge(prediction: str, reference: str) -> Scores:
    words = " ".join(_words(prediction)), " ".join(_words(reference))
    found = _rouge_scorer().get_scores(*words)[0]
    return {name: round(found[name]["f"] * 100, 4) for name in ("rouge-1", "rouge-2", "rouge-l")}


def _bleu_of_characters(prediction: str, reference: str) -> float:
    return round(_bleu(list(prediction), list(reference)) * 100, 4)


def _bleu_of_words(prediction: str, reference: str) -> float:
    return _bleu(_words(prediction), _words(reference))


def _bleu(prediction: list[str], reference: list[str]) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    return float(sentence_bleu([reference], prediction, smoothing_function=SmoothingFunction().method3))


def _words(text: str) -> list[str]:
    return list(_jieba().cut(text))


# These packages cost seconds to import, so they are loaded at the first score.


@cache
def _jieba() -> Any:
    import jieba

    jieba.setLogLevel(logging.WARNING)  # else it reports on stderr how it builds its dictionary
    return jieba


@cache
def _rouge_scorer() -> Any:
    from rouge_chinese import Rouge

    return Rouge()


VARIANTS: dict[str, Variant] = {
    # Source: https://github.com/THUDM/ChatGLM2-6B/blob/main/ptuning/main.py, compute_metrics
    "thudm": Variant(prepare=str, bleu=_bleu_of_characters),
    # Source: https://github.com/THUDM/ChatGLM3/blob/main/finetune_demo/finetune_hf.py, compute_metrics
    "chatglm3": Variant(prepare=str.strip, bleu=_bleu_of_words),
}
