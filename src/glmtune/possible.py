"""The requests that a model family cannot do, each with its refusal; docs/models.md has the table.

Loads no torch, so that a command can refuse before it loads a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from glmtune.errors import ConfigError
from glmtune.families import in_transformers

REQUESTS = (
    "method=lora", "method=adalora", "method=freeze", "method=full", "method=ptuning",
    "quant=int8", "quant=int4", "quant=nf4",
    "--to merged", "--to lora-from-adalora", "--to official-ptuning", "--to hf", "--to int8", "--to int4",
)  # fmt: skip
"""Requests as a user types them: a setting of `train`, or a kind of `export`."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The error for a request that a family cannot do."""

    problem: str
    """A sentence with the placeholder `{family}`."""
    hint: str
    revision: str = ""
    """The one revision of the family that is refused; empty for every revision."""


_OWN_CLASS = "not possible with a {family} model, which is held by transformers' own class"
_NO_PREFIX = Refusal(_OWN_CLASS, "method=lora, adalora, freeze and full are possible")
_NO_CODES = Refusal(
    "a {family} model has no official int8 or int4 weights",
    "to=merged, then quantise it with the tool of the server that is to run it",
)
_NO_ENCODER_HINT = "serve the run itself; or take a later revision of ChatGLM-6B's files as the base"

_IN_TRANSFORMERS: Mapping[str, Refusal] = {
    "method=ptuning": _NO_PREFIX,
    "--to official-ptuning": _NO_PREFIX,
    "--to hf": Refusal("a {family} model is in transformers' own layout already", "to=merged"),
    "--to int8": _NO_CODES,
    "--to int4": _NO_CODES,
}

REFUSALS: dict[str, Mapping[str, Refusal]] = {
    "ChatGLM-6B": {
        "--to official-ptuning": Refusal(
            "{family}'s early revision's official code has no prefix encoder, so it cannot load one",
            _NO_ENCODER_HINT,
            revision="early",
        ),
        "--to hf": Refusal(
            "transformers has no class for {family}",
            "to=merged: its folder opens with the official code (trust_remote_code) and here",
        ),
    },
    "ChatGLM2/ChatGLM3": {},
    "GLM-4": {
        "--to official-ptuning": Refusal(
            "{family}'s official code has no prefix encoder, so it cannot load one", _NO_ENCODER_HINT
        )
    },
    **dict.fromkeys(in_transformers(), _IN_TRANSFORMERS),
}
"""Refusals by family name and request. A request without a refusal is possible."""


def require_possible(family: str, request: str, where: str, *, revision: str = "") -> None:
    """Raise ConfigError, its message beginning with `where`, if a family cannot do one of `REQUESTS`."""
    # [family], not .get: a new family must have a row, even an empty one
    refusal = REFUSALS[family].get(request)
    if refusal and refusal.revision in ("", revision):
        raise ConfigError(f"{where}: {refusal.problem.format(family=family)}", hint=refusal.hint)
