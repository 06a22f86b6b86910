"""What the verbs and the public functions do."""

from glmtune.workflows.evaluating import evaluate, evaluating
from glmtune.workflows.events import RunResult
from glmtune.workflows.training import train, training

__all__ = ["RunResult", "evaluate", "evaluating", "train", "training"]
