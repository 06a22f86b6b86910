"""Fine-tune, prove, talk to and ship the GLM family on your own data and your own card.

Importing this loads nothing heavy: each public name is loaded at its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glmtune.adapters.proof import Check
    from glmtune.chat import Chat
    from glmtune.conversation import encode_messages
    from glmtune.errors import GlmtuneError
    from glmtune.evaluation.metrics import score
    from glmtune.load import load_model, load_tokenizer
    from glmtune.migration import Migration
    from glmtune.recipe import Recipe
    from glmtune.report.compare import Comparison
    from glmtune.several import Adapters
    from glmtune.templates import render_messages
    from glmtune.workflows import ExportResult, RunResult, compare, evaluate, export, migrate, train, verify

_HOMES = {
    "Adapters": "glmtune.several",
    "Chat": "glmtune.chat",
    "Check": "glmtune.adapters.proof",
    "Comparison": "glmtune.report.compare",
    "ExportResult": "glmtune.workflows",
    "GlmtuneError": "glmtune.errors",
    "Migration": "glmtune.migration",
    "Recipe": "glmtune.recipe",
    "RunResult": "glmtune.workflows",
    "compare": "glmtune.workflows",
    "encode_messages": "glmtune.conversation",
    "evaluate": "glmtune.workflows",
    "export": "glmtune.workflows",
    "load_model": "glmtune.load",
    "load_tokenizer": "glmtune.load",
    "migrate": "glmtune.workflows",
    "render_messages": "glmtune.templates",
    "score": "glmtune.evaluation.metrics",
    "train": "glmtune.workflows",
    "verify": "glmtune.workflows",
}

__all__ = [
    "Adapters",
    "Chat",
    "Check",
    "Comparison",
    "ExportResult",
    "GlmtuneError",
    "Migration",
    "Recipe",
    "RunResult",
    "compare",
    "encode_messages",
    "evaluate",
    "export",
    "load_model",
    "load_tokenizer",
    "migrate",
    "render_messages",
    "score",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("glmtune")
    if name not in _HOMES:
        raise AttributeError(f"module 'glmtune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names; what submodules there are is no news to those who call them."""
    return [*__all__, "__version__"]
