"""Fine-tune, verify, chat with and export the models of the GLM family.

Importing this loads no torch: each public name is loaded at its first use. docs/python.md shows all of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glmtune.adapters.proof import Check
    from glmtune.chat import Chat
    from glmtune.conversation import answer_text, encode_messages
    from glmtune.errors import (
        AnswerError,
        CheckpointError,
        ConfigError,
        DataError,
        GlmtuneError,
        MissingDependencyError,
        OutputError,
        TrainingError,
    )
    from glmtune.evaluation.metrics import score
    from glmtune.explanations import Explained, explain
    from glmtune.generate import Engine, Request, Sampling
    from glmtune.load import load_model, load_tokenizer
    from glmtune.migration import Migration
    from glmtune.recipe import Recipe
    from glmtune.reports.checkup import Checkup
    from glmtune.reports.compare import Comparison
    from glmtune.several import Adapters
    from glmtune.templates import render_messages
    from glmtune.workflows import (
        ExportResult,
        RunResult,
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
    from glmtune.workflows.findings import Finding
    from glmtune.workflows.outlook import Outlook
    from glmtune.workflows.public import checkup, plan

_HOMES = {
    "Adapters": "glmtune.several",
    "AnswerError": "glmtune.errors",
    "Chat": "glmtune.chat",
    "Check": "glmtune.adapters.proof",
    "CheckpointError": "glmtune.errors",
    "Checkup": "glmtune.reports.checkup",
    "Comparison": "glmtune.reports.compare",
    "ConfigError": "glmtune.errors",
    "DataError": "glmtune.errors",
    "Engine": "glmtune.generate",
    "Explained": "glmtune.explanations",
    "ExportResult": "glmtune.workflows",
    "Finding": "glmtune.workflows.findings",
    "GlmtuneError": "glmtune.errors",
    "Migration": "glmtune.migration",
    "MissingDependencyError": "glmtune.errors",
    "Outlook": "glmtune.workflows.outlook",
    "OutputError": "glmtune.errors",
    "Recipe": "glmtune.recipe",
    "Request": "glmtune.generate",
    "RunResult": "glmtune.workflows",
    "Sampling": "glmtune.generate",
    "TrainingError": "glmtune.errors",
    "answer_text": "glmtune.conversation",
    "card": "glmtune.workflows",
    "checkup": "glmtune.workflows.public",
    "compare": "glmtune.workflows",
    "doctor": "glmtune.workflows",
    "encode_messages": "glmtune.conversation",
    "evaluate": "glmtune.workflows",
    "explain": "glmtune.explanations",
    "export": "glmtune.workflows",
    "load_model": "glmtune.load",
    "load_tokenizer": "glmtune.load",
    "migrate": "glmtune.workflows",
    "plan": "glmtune.workflows.public",
    "render_messages": "glmtune.templates",
    "report": "glmtune.workflows",
    "score": "glmtune.evaluation.metrics",
    "train": "glmtune.workflows",
    "verify": "glmtune.workflows",
}
"""The module that each public name is loaded from."""

__all__ = [
    "Adapters",
    "AnswerError",
    "Chat",
    "Check",
    "CheckpointError",
    "Checkup",
    "Comparison",
    "ConfigError",
    "DataError",
    "Engine",
    "Explained",
    "ExportResult",
    "Finding",
    "GlmtuneError",
    "Migration",
    "MissingDependencyError",
    "Outlook",
    "OutputError",
    "Recipe",
    "Request",
    "RunResult",
    "Sampling",
    "TrainingError",
    "answer_text",
    "card",
    "checkup",
    "compare",
    "doctor",
    "encode_messages",
    "evaluate",
    "explain",
    "export",
    "load_model",
    "load_tokenizer",
    "migrate",
    "plan",
    "render_messages",
    "report",
    "score",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    # PEP 562: called only for a name that this module does not have yet
    if name == "__version__":
        from importlib.metadata import version

        return version("glmtune")
    if name == "errors":  # for `help(glmtune.errors)`
        return import_module("glmtune.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'glmtune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names only, without the submodules that happen to be loaded."""
    return [*__all__, "__version__"]
