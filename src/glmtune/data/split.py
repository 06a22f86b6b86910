"""Rows for the evaluation loss: held out of the training rows, or drawn from a file of their own."""

import random
from collections.abc import Sequence

from glmtune.data.example import Example
from glmtune.errors import ConfigError, DataError
from glmtune.recipe.settings import Data

HOLDOUT_SHARE = 20
"""One row in so many is held out by default: 5 %."""
MOST_HOLDOUT_ROWS = 200
MOST_VALIDATION_ROWS = 200
"""Of a file, unless more are asked for: the loss is taken some ten times a run."""


def count_holdout(num_rows: int, settings: Data) -> int:
    """How many of so many rows are held out: `data.holdout_rows`, else 5 %, at least 1, at most 200.

    Raises an error if that leaves nothing to train on.
    """
    if num_rows < 2:
        raise DataError(
            f"{settings.train_name or 'data.train'}: {num_rows} row{'' if num_rows == 1 else 's'} "
            "cannot be split into training and validation rows",
            hint="add rows: two are enough; or name a file of other rows: data.validation=FILE",
        )
    wanted = settings.holdout_rows or min(max(num_rows // HOLDOUT_SHARE, 1), MOST_HOLDOUT_ROWS)
    if wanted >= num_rows:
        raise ConfigError(
            f"data.holdout_rows: {wanted} of {num_rows} rows leaves none to train on",
            hint=f"hold out at most {num_rows - 1}, or name a validation file: data.validation=FILE",
        )
    return wanted


def split_holdout(examples: Sequence[Example], settings: Data) -> tuple[list[Example], list[Example]]:
    """Training and validation rows, both in file order; the same `data.split_seed` draws the same rows."""
    held = set(_draw(len(examples), count_holdout(len(examples), settings), settings.split_seed))
    train = [example for index, example in enumerate(examples) if index not in held]
    return train, [examples[index] for index in sorted(held)]


def draw_validation(examples: Sequence[Example], settings: Data) -> list[Example]:
    """The rows that the evaluation loss is taken over, in file order; `data.split_seed` draws which."""
    most = settings.max_validation_rows
    if most is None:
        most = len(examples) if settings.validation is None else MOST_VALIDATION_ROWS
    return [examples[index] for index in _draw(len(examples), most, settings.split_seed)]


def _draw(num_rows: int, num_drawn: int, seed: int) -> list[int]:
    """So many numbers of rows, or all where there are no more; in order."""
    # Only `random()` itself is promised to give the same numbers in every Python version.
    draw = random.Random(seed)
    ranks = [draw.random() for _ in range(num_rows)]
    return sorted(sorted(range(num_rows), key=ranks.__getitem__)[:num_drawn])
