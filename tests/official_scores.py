"""Scores as the official scripts compute them, with jieba, rouge-chinese and nltk: the oracle of ours.

Sources: https://github.com/THUDM/ChatGLM2-6B/blob/main/ptuning/main.py and
https://github.com/THUDM/ChatGLM3/blob/main/finetune_demo/finetune_hf.py, compute_metrics.
"""

import logging
from collections.abc import Sequence

import jieba
import numpy as np
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

jieba.setLogLevel(logging.WARNING)


def score_pair(prediction: str, reference: str, variant: str) -> dict[str, float]:
    """Scores of one pair; fails where the scripts fail, on a text of nothing but white space."""
    if variant == "chatglm3":
        prediction, reference = prediction.strip(), reference.strip()
    words = list(jieba.cut(prediction)), list(jieba.cut(reference))
    found = Rouge().get_scores(" ".join(words[0]), " ".join(words[1]))[0]
    scores = {name: round(value["f"] * 100, 4) for name, value in found.items()}
    smooth = SmoothingFunction().method3
    if variant == "chatglm3":
        bleu = sentence_bleu([words[1]], words[0], smoothing_function=smooth)
    else:
        bleu = sentence_bleu([list(reference)], list(prediction), smoothing_function=smooth)
        bleu = round(bleu * 100, 4)
    return {**scores, "bleu-4": bleu}


def score(predictions: Sequence[str], references: Sequence[str], variant: str) -> dict[str, float]:
    """Mean scores over all pairs."""
    pairs = [score_pair(*pair, variant) for pair in zip(predictions, references, strict=True)]
    return {name: float(np.mean([scores[name] for scores in pairs])) for name in pairs[0]}
