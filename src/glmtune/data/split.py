"""Choose the rows of the evaluation loss: held out of the training rows, or drawn from a validation file."""

import random
from collections.abc import Sequence

from glmtune.data.example import Example
from glmtune.errors import ConfigError, DataError
from glmtune.recipe.settings import Data

HOLDOUT_SHARE = 20
"""By default one row in 20 is held out: 5 %."""
MOST_HOLDOUT_ROWS = 200
MOST_VALIDATION_ROWS = 200
"""Rows of a validation file used unless settings ask for more: the loss is computed some ten times a run."""


def count_holdout(num_rows: int, settings: Data) -> int:
    """Return the number of rows to hold out: `data.holdout_rows`, else 5 %, at least 1, at most 200.

    Raises an error if that leaves nothing to train on.
    """
    if num_rows < 2:
        raise DataError(
            f"{settings.train_name or 'data.train'}: {num_rows} row{'' if num_rows == 1 else 's'} "
            "cannot be split into training and validation rows",
            hint="add rows: two are enough; or name a file of other rows: data.validation=FILE",
        )
    num_holdout = settings.holdout_rows or min(max(num_rows // HOLDOUT_SHARE, 1), MOST_HOLDOUT_ROWS)
    if num_holdout >= num_rows:
        raise ConfigError(
            f"data.holdout_rows: {num_holdout} of {num_rows} rows leaves none to train on",
            hint=f"hold out at most {num_rows - 1}, or name a validation file: data.validation=FILE",
        )
    return num_holdout


def split_holdout(examples: Sequence[Example], settings: Data) -> tuple[list[Example], list[Example]]:
    """Return training and validation rows, both in file order, as `data.split_seed` draws them."""
    holdout = set(_draw(len(examples), count_holdout(len(examples), settings), settings.split_seed))
    train = [example for index, example in enumerate(examples) if index not in holdout]
    return train, [examples[index] for index in sorted(holdout)]


def draw_validation(examples: Sequence[Example], settings: Data) -> list[Example]:
    """Return the rows of the evaluation loss, in file order; of too many `data.split_seed` draws some."""
    max_rows = settings.max_validation_rows
    if max_rows is None:
        max_rows = len(examples) if settings.validation is None else MOST_VALIDATION_ROWS
    return [examples[index] for index in _draw(len(examples), max_rows, settings.split_seed)]


def _draw(num_rows: int, num_drawn: int, seed: int) -> list[int]:
    """Return the numbers of `num_drawn` random rows, or of all if there are fewer, in ascending order."""
    # Only `random()` itself is promised to give the same numbers in every Python version. Source:
    # https://docs.python.org/3/library/random.html#notes-on-reproducibility
    draw = random.Random(seed)
    ranks = [draw.random() for _ in range(num_rows)]
    return sorted(sorted(range(num_rows), key=ranks.__getitem__)[:num_drawn])
