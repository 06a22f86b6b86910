"""Scores equal those that the official scripts computed, to the last bit, pair by pair and overall."""

import json

import pytest

from glmtune.evaluation.metrics import SCORE_NAMES, score, score_pair
from glmtune.evaluation.words import cut

SCRIPTS = {"thudm": "ptuning", "chatglm3": "chatglm3"}
pytestmark = pytest.mark.shared
for_each_variant = pytest.mark.parametrize("variant", SCRIPTS)


@pytest.fixture(scope="module")
def goldens(shared) -> dict:
    return json.loads((shared / "goldens/metrics/metrics.json").read_text(encoding="utf-8"))


@for_each_variant
def test_each_pair_scores_as_the_official_script_scored_it(goldens, variant):
    for pair, golden in zip(goldens["pairs"], goldens[SCRIPTS[variant]]["per_pair"], strict=True):
        scores = score_pair(pair["prediction"], pair["reference"], variant)
        assert scores == {name: golden[name] for name in SCORE_NAMES}


@for_each_variant
def test_all_pairs_together_score_as_the_official_script_scored_them(goldens, variant):
    predictions, references = (
        [pair[key] for pair in goldens["pairs"]] for key in ("prediction", "reference")
    )
    scores = score(predictions, references, variant)
    assert scores.pop("num_empty") == 0
    assert scores == goldens[SCRIPTS[variant]]["all"]


def test_texts_are_cut_as_jieba_cut_them_then(goldens):
    for pair, golden in zip(goldens["pairs"], goldens["jieba_tokens"], strict=True):
        assert [list(cut(pair[key])) for key in ("prediction", "reference")] == golden
