"""Fine-tune, prove, talk to and ship the GLM family on your own data and your own card.

Importing this loads nothing heavy: each public name is loaded at its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import glmtune.log  # noqa: F401  # before any package that it keeps quiet

if TYPE_CHECKING:
    from glmtune.adapters import Adapters
    from glmtune.errors import GlmtuneError
    from glmtune.evaluation.metrics import score
    from glmtune.generate import Chat
    from glmtune.load import load_model, load_tokenizer
    from glmtune.recipe import Recipe
    from glmtune.report.compare import Comparison, compare
    from glmtune.tokenizers import encode_messages
    from glmtune.workflows import ExportResult, RunResult, evaluate, export, train

_HOMES = {
    "Adapters": "glmtune.adapters",
    "Chat": "glmtune.generate",
    "Comparison": "glmtune.report.compare",
    "ExportResult": "glmtune.workflows",
    "GlmtuneError": "glmtune.errors",
    "Recipe": "glmtune.recipe",
    "RunResult": "glmtune.workflows",
    "compare": "glmtune.report.compare",
    "encode_messages": "glmtune.tokenizers",
    "evaluate": "glmtune.workflows",
    "export": "glmtune.workflows",
    "load_model": "glmtune.load",
    "load_tokenizer": "glmtune.load",
    "score": "glmtune.evaluation.metrics",
    "train": "glmtune.workflows",
}

__all__ = [
    "Adapters",
    "Chat",
    "Comparison",
    "ExportResult",
    "GlmtuneError",
    "Recipe",
    "RunResult",
    "compare",
    "encode_messages",
    "evaluate",
    "export",
    "load_model",
    "load_tokenizer",
    "score",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glmtune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
