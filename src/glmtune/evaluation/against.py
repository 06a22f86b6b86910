"""Scores of two models on the same rows: mean differences, with the intervals of a paired bootstrap."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.evaluation.forgetting import paired
from glmtune.evaluation.metrics import SCORE_NAMES, score_pair
from glmtune.evaluation.predictions import PREDICTIONS_FILE, Prediction
from glmtune.run_files import read_json_lines


def read_predictions(folder: Path) -> dict[int, Prediction]:
    """Return the answers of an evaluation's folder by their rows. Raises `ConfigError` if there are none."""
    lines = read_json_lines(folder / PREDICTIONS_FILE)
    if not lines:
        raise ConfigError(
            f"against: {folder}: no evaluation: it has no {PREDICTIONS_FILE}",
            hint="name the folder that an evaluation of the same rows has written: output=FOLDER there",
        )
    return {line["row"]: Prediction(**line) for line in lines}


def compare_scores(
    ours: Sequence[Prediction], other: Path, turns: Mapping[int, int]
) -> list[tuple[int | None, int, dict[str, dict[str, Any]]]]:
    """Return how our `thudm` scores differ from those of another evaluation's folder, by turn.

    Of all rows first, whose turn is None, then of each turn if there are several: the turn, the number of
    rows, and of each score the difference's `mean`, `low` and `high`, and `is_real` if that is more than
    chance. Raises `ConfigError` for an evaluation of other rows.
    """
    theirs = read_predictions(other)
    pairs = [(each, theirs[each.row]) for each in ours if each.row in theirs]
    if not pairs or any(one.labels != two.labels for one, two in pairs):
        raise ConfigError(
            f"against: {other}: an evaluation of other rows",
            hint="evaluate both on the same rows: data.test=FILE",
        )
    known = sorted({turns.get(one.row, 1) for one, _ in pairs})
    compared = []
    for turn in (None, *(known if len(known) > 1 else ())):
        chosen = [pair for pair in pairs if turn is None or turns.get(pair[0].row, 1) == turn]
        scores = [
            [score_pair(each.predict, each.labels) for each in side] for side in zip(*chosen, strict=True)
        ]
        found = {}
        for name in SCORE_NAMES:
            interval, is_real = paired(*([row[name] for row in side] for side in scores))
            found[name] = {**asdict(interval), "is_real": is_real}
        compared.append((turn, len(chosen), found))
    return compared
