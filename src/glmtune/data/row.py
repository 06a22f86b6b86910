"""A training row: its token ids, its labels, and the file and line that it was read from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)  # not frozen: a data set has millions, and these are made in a third of the time
class TrainingRow:
    """A training row of T tokens, L of them with labels."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    """The ids to learn, -100 elsewhere; not shifted."""
    where: str
    """File and line of the conversation, such as `train.jsonl:2`."""
    source: int = 0
    """The number of the row's source in `data.train`."""
    position_ids: NDArray[np.int64] | None = None
    """Positions set by the objective, (..., T); None if they count from 0."""
    target_ids: NDArray[np.int32] | None = None
    """Ids of each label's teacher distribution, (L, K): the label, then the likeliest others; None if labels
    alone are learned."""
    target_log_probs: NDArray[np.float32] | None = None
    """The log probabilities of `target_ids`, (L, K)."""
