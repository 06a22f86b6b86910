"""The workflows behind the verbs of `glmtune` and the public functions.

A training run reads top to bottom: early (recipe, rows), plan, assemble, execute.
"""

from glmtune.workflows.events import ExportResult, RunResult
from glmtune.workflows.public import (
    card,
    compare,
    doctor,
    evaluate,
    export,
    migrate,
    report,
    train,
    verify,
)

__all__ = [
    "ExportResult",
    "RunResult",
    "card",
    "compare",
    "doctor",
    "evaluate",
    "export",
    "migrate",
    "report",
    "train",
    "verify",
]
