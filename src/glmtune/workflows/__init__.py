"""What the verbs and the public functions do."""

from glmtune.workflows.evaluating import evaluate, evaluating
from glmtune.workflows.events import RunResult
from glmtune.workflows.exporting import ExportResult, export, exporting
from glmtune.workflows.training import train, training
from glmtune.workflows.verifying import verify, verifying

__all__ = [
    "ExportResult",
    "RunResult",
    "evaluate",
    "evaluating",
    "export",
    "exporting",
    "train",
    "training",
    "verify",
    "verifying",
]
