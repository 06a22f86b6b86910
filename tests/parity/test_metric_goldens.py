"""Scores equal those that the official scripts computed, pair by pair and overall."""

import json

import pytest

from glmtune.evaluation.metrics import SCORE_NAMES, score, score_pair

SCRIPTS = {"thudm": "ptuning", "chatglm3": "chatglm3"}
pytestmark = [pytest.mark.shared, pytest.mark.parametrize("variant", SCRIPTS)]


@pytest.fixture(scope="module")
def goldens(shared) -> dict:
    return json.loads((shared / "goldens/metrics/metrics.json").read_text(encoding="utf-8"))


def test_each_pair_scores_as_the_official_script_scored_it(goldens, variant):
    for pair, golden in zip(goldens["pairs"], goldens[SCRIPTS[variant]]["per_pair"], strict=True):
        scores = score_pair(pair["prediction"], pair["reference"], variant)
        assert scores == pytest.approx({name: golden[name] for name in SCORE_NAMES}, abs=1e-9)


def test_all_pairs_together_score_as_the_official_script_scored_them(goldens, variant):
    predictions, references = (
        [pair[key] for pair in goldens["pairs"]] for key in ("prediction", "reference")
    )
    scores = score(predictions, references, variant)
    assert scores.pop("num_empty") == 0
    assert scores == pytest.approx(goldens[SCRIPTS[variant]]["all"], abs=1e-9)
