"""ROUGE and BLEU-4 of answers against references, equal to the official scripts' scores to the last bit.

Both scripts compute ROUGE over jieba words; they differ in BLEU-4, its scale, and in the stripping of texts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from glmtune.errors import ConfigError, DataError
from glmtune.evaluation.overlap import bleu_4, rouge_1, rouge_2, rouge_l, split_for_rouge
from glmtune.evaluation.words import cut

Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Variant:
    """The way one official script scores a pair of texts."""

    prepare: Callable[[str], str]
    bleu: Callable[[str, str], float]
    best_bleu: int
    """Highest BLEU-4: that of the reference itself."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: the function that scores one answer, and the score of the reference itself."""

    measure: Callable[[str, str, Variant], float]
    """(prediction, reference, variant) -> score, of two texts that the variant has prepared."""
    best: Callable[[Variant], int] = lambda _: 100
    """Score of the reference itself."""


def score(
    predictions: str | Sequence[str], references: str | Sequence[str], variant: str = "thudm"
) -> Scores:
    """Return the mean scores over all pairs, or of two texts, and `num_empty`: an empty prediction scores 0.

    `rouge-1`, `rouge-2`, `rouge-l` are F-measures x100 over jieba words. `bleu-4` is x100 over characters in
    `thudm` (ptuning/main.py) and 0-1 over jieba words in `chatglm3` (finetune_demo/finetune_hf.py). Raises
    `DataError` for lists of different lengths, a list and a text, no pairs, or an empty reference, which no
    answer can match.
    """
    if isinstance(predictions, str) and isinstance(references, str):
        predictions, references = [predictions], [references]
    for name, texts in {"predictions": predictions, "references": references}.items():
        if isinstance(texts, str):
            raise DataError(f"{name}: a text beside a list", hint=f"make it a list too: {name}=[...]")
    return _score(predictions, references, [variant])[variant]


def score_variants(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Scores]:
    """Return `score` of every variant by its name; each text is cut into words only once."""
    return _score(predictions, references, VARIANTS)


def score_pair(prediction: str, reference: str, variant: str = "thudm") -> Scores:
    """Return the scores of one answer, rounded as the script does; an empty answer scores 0."""
    if variant not in VARIANTS:
        raise ConfigError(f"variant: {variant!r} is unknown", hint=f"choose one of: {', '.join(VARIANTS)}")
    if is_empty(reference):
        raise _empty_reference("the reference")
    if is_empty(prediction):
        return dict.fromkeys(SCORE_NAMES, 0.0)
    chosen = VARIANTS[variant]
    prediction, reference = chosen.prepare(prediction), chosen.prepare(reference)
    return {name: metric.measure(prediction, reference, chosen) for name, metric in METRICS.items()}


def with_scale(value: float, name: str, variant: str = "thudm", *, digits: int = 2) -> str:
    """Write a score with the highest possible one: `25.96 of 100`, `0.2511 of 1`."""
    return f"{value:.{digits}f} of {METRICS[name].best(VARIANTS[variant])}"


def is_empty(text: str) -> bool:
    """True if a text is only white space. The official scripts crash on such an answer."""
    return not text.strip()


def _score(
    predictions: Sequence[str], references: Sequence[str], variants: Iterable[str]
) -> dict[str, Scores]:
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
    pairs = [
        {variant: score_pair(*pair, variant=variant) for variant in variants}
        for pair in zip(predictions, references, strict=True)
    ]
    num_empty = sum(is_empty(prediction) for prediction in predictions)
    means: dict[str, Scores] = {}
    for variant in pairs[0]:
        scores = [pair[variant] for pair in pairs]
        # numpy's mean, as in both scripts: its order of summation decides the last bit
        means[variant] = {name: float(np.mean([row[name] for row in scores])) for name in SCORE_NAMES}
        means[variant]["num_empty"] = num_empty
    return means


def _empty_reference(where: str) -> DataError:
    return DataError(
        f"{where}: is empty, so no answer can be compared with it", hint="leave out pairs without a reference"
    )


@lru_cache(maxsize=256)  # the variants mostly prepare the texts alike
def _rouge(prediction: str, reference: str) -> Scores:
    words = split_for_rouge(cut(prediction)), split_for_rouge(cut(reference))
    measures = {"rouge-1": rouge_1, "rouge-2": rouge_2, "rouge-l": rouge_l}
    return {name: round(measure(*words) * 100, 4) for name, measure in measures.items()}


def _bleu_of_characters(prediction: str, reference: str) -> float:
    return round(bleu_4(prediction, reference) * 100, 4)


def _bleu_of_words(prediction: str, reference: str) -> float:
    return bleu_4(cut(prediction), cut(reference))


VARIANTS: dict[str, Variant] = {
    # Source: https://github.com/THUDM/ChatGLM2-6B/blob/main/ptuning/main.py, compute_metrics
    "thudm": Variant(prepare=str, bleu=_bleu_of_characters, best_bleu=100),
    # Source: https://github.com/THUDM/ChatGLM3/blob/main/finetune_demo/finetune_hf.py, compute_metrics
    "chatglm3": Variant(prepare=str.strip, bleu=_bleu_of_words, best_bleu=1),
}
METRICS: dict[str, Metric] = {
    "rouge-1": Metric(lambda prediction, reference, _: _rouge(prediction, reference)["rouge-1"]),
    "rouge-2": Metric(lambda prediction, reference, _: _rouge(prediction, reference)["rouge-2"]),
    "rouge-l": Metric(lambda prediction, reference, _: _rouge(prediction, reference)["rouge-l"]),
    "bleu-4": Metric(
        lambda prediction, reference, variant: variant.bleu(prediction, reference),
        best=lambda variant: variant.best_bleu,
    ),
}
SCORE_NAMES = tuple(METRICS)
