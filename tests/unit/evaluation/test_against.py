"""Two evaluations of the same rows, compared score by score."""

from dataclasses import asdict
from pathlib import Path

import pytest

from glmtune.errors import ConfigError
from glmtune.evaluation.against import compare_scores
from glmtune.evaluation.metrics import SCORE_NAMES, score_pair
from glmtune.evaluation.predictions import PREDICTIONS_FILE, Prediction
from glmtune.run_files import append_json

REFERENCES = [f"这条裙子是{colour}色的，穿着舒适。" for colour in "红黄蓝绿紫黑白灰"]
WORSE = "这是一条裙子。"


def write(folder: Path, answers: list[str], references: list[str] = REFERENCES) -> list[Prediction]:
    folder.mkdir()
    rows = enumerate(zip(references, answers, strict=True))
    predictions = [Prediction(i, *pair, True) for i, pair in rows]
    for each in predictions:
        append_json(folder / PREDICTIONS_FILE, asdict(each))
    return predictions


def test_differences_are_those_of_the_means_and_their_turns(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", REFERENCES)
    write(tmp_path / "theirs", [WORSE] * 4 + REFERENCES[4:])
    every, first, second = compare_scores(ours, tmp_path / "theirs", {i: 1 + i // 4 for i in range(8)})
    assert [each[:2] for each in (every, first, second)] == [(None, 8), (1, 4), (2, 4)]
    for name in SCORE_NAMES:
        lost = [score_pair(text, text)[name] - score_pair(WORSE, text)[name] for text in REFERENCES[:4]]
        assert first[2][name]["mean"] == pytest.approx(sum(lost) / 4)
        assert every[2][name]["mean"] == pytest.approx(sum(lost) / 8)
        assert first[2][name]["is_real"]
        assert second[2][name] == {"mean": 0, "low": 0, "high": 0, "is_real": False}


def test_an_evaluation_of_other_rows_or_none_is_refused(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", REFERENCES)
    write(tmp_path / "other", REFERENCES, REFERENCES[::-1])
    with pytest.raises(ConfigError, match="an evaluation of other rows"):
        compare_scores(ours, tmp_path / "other", {})
    with pytest.raises(ConfigError, match="no evaluation: it has no generated_predictions"):
        compare_scores(ours, tmp_path, {})


def test_rows_that_only_one_has_answered_do_not_count(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", REFERENCES)
    write(tmp_path / "fewer", REFERENCES[:3], REFERENCES[:3])
    [(turn, number, _)] = compare_scores(ours, tmp_path / "fewer", {})
    assert (turn, number) == (None, 3)
