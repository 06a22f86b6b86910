"""The settings of retention: a tuned model keeps what it could before, and a report measures it."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from glmtune.paths import find_rows
from glmtune.recipe.base import MAX_RATE, SettingError, Settings

DEFAULT_RATIO = 0.1
"""Part of an epoch that is replay where `retain.ratio` is empty and the base can answer prompts."""


class Retain(Settings):
    """Keeping the abilities of the base: rows that the base itself answered, and the report of forgetting."""

    ratio: float | None = Field(None, ge=0, lt=1)
    """Part of each epoch's rows that are replay: general prompts with the answers of the untouched base,
    given before step 1; empty: 0.1 with `data.encoding: chat` and a chat format, else 0, which is none. A
    run records it. The loss of a step is of all its rows, these among them."""
    targets: Literal["likeliest", "answers"] = "likeliest"
    """Targets of the replay rows. `likeliest`: the base's probabilities of the 20 likeliest tokens at each
    place, and of all others together. `answers`: the tokens of its answers alone."""
    kl: float = Field(0.0, ge=0, le=MAX_RATE)
    """Weight of the divergence from the base, KL(base || tuned), on the answers of the training rows."""
    prompts: Path | None = None
    """Prompts for the replay rows in place of the built-in ones: a text file with one a line, or a data file,
    whose questions the base answers anew."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest answer of the base in tokens, in replay and report."""
    report: Literal["end", "evaluations", "off"] = "end"
    """The report of forgetting, on general prompts that are not in the replay: at the end of the run, at each
    evaluation too, or never (`off`)."""
    report_prompts: int = Field(32, ge=1)
    """Number of general prompts of the report."""
    drifted: float = Field(0.05, ge=0, le=MAX_RATE)
    """Divergence from the base on general prompts, in nats a token, from which the verdict is `drifted`."""
    forgot: float = Field(0.25, ge=0, le=MAX_RATE)
    """The same from which the verdict is `forgot`."""

    @field_validator("report", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # which is how YAML reads the word

    @field_validator("prompts")
    @classmethod
    def _bundled(cls, value: Path | None) -> Path | None:
        return find_rows(value) if value else value

    @model_validator(mode="after")
    def _ascending(self) -> "Retain":
        if self.forgot < self.drifted:
            raise SettingError(
                f"drifted {self.drifted:g} and forgot {self.forgot:g}: the first comes before the second",
                hint="retain.drifted=0.05 retain.forgot=0.25 are the defaults",
            )
        return self
