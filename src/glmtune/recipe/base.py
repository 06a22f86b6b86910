"""What every group of settings shares: read-only, nothing unknown, documented by its fields."""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from glmtune.files import expand_home


class Settings(BaseModel):
    """Base: read-only, refuses what it does not know, carries its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        return expand_home(value) if isinstance(value, Path) else value

    @model_validator(mode="before")
    @classmethod
    def _no_bool_as_number(cls, values: Any) -> Any:
        """YAML's `yes` and `True` would pass for the number 1."""
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and key in cls.model_fields:
                kind = cls.model_fields[key].annotation
                kinds = get_args(kind) or (kind,)
                if bool not in kinds and (int in kinds or float in kinds):
                    raise ValueError(f"{key} must be a number, got {value}")
        return values
