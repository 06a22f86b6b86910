"""What every group of settings shares: read-only, nothing unknown, documented by its fields."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticKnownError, SchemaValidator, core_schema

from glmtune.paths import read_path

MAX_COUNT = 10**15
"""Largest whole number of a setting, seeds apart: what is counted with it still fits into 64 bits."""
MAX_SEED = 2**63 - 1
"""Largest seed that torch takes, with room for the number of a process."""
MAX_SIZE = 2**16
"""Most rows that are answered at once, and the largest rank and prefix: what is made has this size."""
MAX_RATE = 1e30
"""Up to here AdamW can calculate, and the guard stops a run; from some 1e37 on its step is no fp32 number."""


class SettingError(ValueError):
    """A setting that cannot be, and what to do instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Settings(BaseModel):
    """Base: read-only, refuses what it does not know, carries its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _readable(cls, value: Any, info: ValidationInfo) -> Any:
        """Home folders are put in; half a character is refused, but in the name of a file of rows."""
        if isinstance(value, int):  # as text, it was none before
            _check_size(value, str(info.field_name))
        if isinstance(value, Path):
            try:
                return read_path(value, has_weights=info.field_name in ("base", "output"))
            except ValueError as err:
                hint = "name another path; in YAML's double quotes a backslash begins an escape, as \\0 does"
                raise SettingError(str(err), hint=hint) from None
        if info.field_name == "model":
            read_path(value, has_weights=True)  # it stays text: it may be a name on a hub
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str):
                _check_text(part)
        return value

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:
        """YAML's `yes` and `True` would pass for the number 1; one too large to print goes no further."""
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and key in cls.model_fields:
                kind = cls.model_fields[key].annotation
                kinds = get_args(kind) or (kind,)
                if bool not in kinds and (int in kinds or float in kinds):
                    raise ValueError(f"{key} must be a number, got {value}")
            if isinstance(value, int):
                _check_size(value, str(key), f"{key} ")
        return values


def by_name(union: Any) -> MutableMapping[str, Any]:
    """The members of a union of settings, by the default of their `name`."""
    return {kind.model_fields["name"].default: kind for kind in get_args(union)}


@dataclass(frozen=True, eq=False)
class OneOf:
    """Says of a union's field that `name` chooses the settings type in a table, to which a test may add."""

    table: Mapping[str, type[Settings]]

    def read(self, value: Any) -> Any:
        """The settings that a dict or an instance means. Raises `ValidationError`, the name in its places."""
        return _tagged(tuple(self.table.values())).validate_python(value)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)


@dataclass(frozen=True, eq=False)
class NameIn:
    """Says of a field that it is a name in a table, to which a test may add."""

    table: Mapping[str, object]

    def check(self, value: Any) -> str:
        """The name. Raises the error of a `Literal` of all names for any other value."""
        if isinstance(value, str) and value in self.table:
            return value
        *names, last = map(repr, self.table)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(names)} or {last}"})

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)


@cache
def _tagged(kinds: tuple[type[Settings], ...]) -> SchemaValidator:
    members = {kind.model_fields["name"].default: kind.__pydantic_core_schema__ for kind in kinds}
    return SchemaValidator(core_schema.tagged_union_schema(members, discriminator="name"))


def choices(field: FieldInfo) -> Mapping[str, type[Settings]]:
    """The settings types that a field's `name` chooses among; none where it is no such field."""
    return next((mark.table for mark in field.metadata if isinstance(mark, OneOf)), {})


def _check_size(value: int, name: str, subject: str = "") -> None:
    limit = MAX_SEED if name.endswith("seed") else MAX_COUNT
    if abs(value) > limit:
        raise ValueError(f"{subject}must be at most {limit:,}, got a number of {value.bit_length():,} bits")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise ValueError(f"half a character, {text[err.start]!a}, at character {err.start + 1}") from None
