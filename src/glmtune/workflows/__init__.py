"""What the verbs and the public functions do."""

from glmtune.workflows.events import ExportResult, RunResult
from glmtune.workflows.public import compare, evaluate, export, migrate, train, verify

__all__ = ["ExportResult", "RunResult", "compare", "evaluate", "export", "migrate", "train", "verify"]
