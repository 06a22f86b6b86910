"""A training row as it is learned: its tokens, which of them are learned, and where it comes from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A training row of T tokens, L of them with labels."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    """The ids to learn, -100 elsewhere; not shifted."""
    where: str
    """Where the conversation was read, like `train.jsonl:2`."""
    source: int = 0
    """Which of the sources of `data.train` it is from."""
    position_ids: NDArray[np.int64] | None = None
    """Where an objective has positions of its own, (..., T); else they count from 0."""
    target_ids: NDArray[np.int32] | None = None
    """Where distributions are learned: for each label the K likeliest ids, (L, K)."""
    target_log_probs: NDArray[np.float32] | None = None
    """The logarithms of their probabilities, (L, K)."""
