"""The base class of all groups of settings, and the field types that choose from a table."""

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
"""Largest whole number of a setting, seeds apart: sums and products of it still fit into 64 bits."""
MAX_SEED = 2**63 - 1
"""Largest seed: torch takes it, and the number of a process may be added."""
MAX_SIZE = 2**16
"""Largest batch of answers, rank and prefix length: tensors of this size are allocated."""
MAX_RATE = 1e30
"""Largest real number of a setting. AdamW can compute with it; from about 1e37 on a step overflows fp32."""


class SettingError(ValueError):
    """A setting with an impossible value, and a hint."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Settings(BaseModel):
    """Base of all settings: read-only, refuses unknown names, documented by the strings under its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _readable(cls, value: object, info: ValidationInfo) -> object:
        """Expand `~` in paths, and refuse numbers that are too large and texts that are not UTF-8."""
        if isinstance(value, int):  # `_numbers` has seen numbers, but not those that were text before
            _check_size(value, str(info.field_name))
        if isinstance(value, Path):
            try:
                return read_path(value, has_weights=info.field_name in ("base", "output"))
            except ValueError as err:
                hint = "name another path; in YAML's double quotes a backslash begins an escape, as \\0 does"
                raise SettingError(str(err), hint=hint) from None
        if info.field_name == "model" and isinstance(value, str):
            read_path(value, has_weights=True)  # checked only: it stays text, it may be a name on a hub
        inner = tuple(value.values()) if isinstance(value, Mapping) else value
        for text in inner if isinstance(inner, tuple) else (inner,):
            if isinstance(text, str):
                try:
                    text.encode()
                except UnicodeEncodeError as err:
                    character = f"{text[err.start]!a}, at character {err.start + 1}"
                    raise ValueError(f"half a character, {character}") from None
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool(cls, value: object, info: ValidationInfo) -> object:
        """Refuse booleans for numbers: YAML's `yes` and `True` would pass for 1, as a bool is an int."""
        if isinstance(value, bool):
            kind = cls.model_fields[str(info.field_name)].annotation
            kinds = get_args(kind) or (kind,)
            if bool not in kinds and (int in kinds or float in kinds):
                raise ValueError(f"must be a number, got {value}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, values: object) -> object:
        """Refuse numbers that are too large to print in an error."""
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, int):
                _check_size(value, str(key), f"{key} ")
        return values


def by_name(union: object) -> MutableMapping[str, Any]:
    """Return the members of a union of settings, keyed by the default of their `name`."""
    return {kind.model_fields["name"].default: kind for kind in get_args(union)}


@dataclass(frozen=True, eq=False)
class OneOf:
    """Annotation of a field: its `name` chooses the settings type from a table.

    The table is read at each validation, so that a plugin or a test may add a row.
    """

    table: Mapping[str, type[Settings]]

    def read(self, value: object) -> Any:
        """Read settings from a dict or an instance. Raises `ValidationError`, the name in its location."""
        return _tagged(tuple(self.table.values())).validate_python(value)

    def __get_pydantic_core_schema__(self, _: object, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)


@dataclass(frozen=True, eq=False)
class NameIn:
    """Annotation of a field: its value is a name in a table, read at each validation."""

    table: Mapping[str, object]

    def check(self, value: object) -> str:
        """Return a name of the table. Raises the error of a `Literal` of all names for any other value."""
        if isinstance(value, str) and value in self.table:
            return value
        *names, last = map(repr, self.table)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(names)} or {last}"})

    def __get_pydantic_core_schema__(self, _: object, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)


@cache
def _tagged(kinds: tuple[type[Settings], ...]) -> SchemaValidator:
    members = {kind.model_fields["name"].default: kind.__pydantic_core_schema__ for kind in kinds}
    return SchemaValidator(core_schema.tagged_union_schema(members, discriminator="name"))


def choices(field: FieldInfo) -> Mapping[str, type[Settings]]:
    """Return the settings types that a field's `name` chooses from; empty for other fields."""
    return next((mark.table for mark in field.metadata if isinstance(mark, OneOf)), {})


def _check_size(value: int, name: str, subject: str = "") -> None:
    # in bits: Python refuses to print a number of more than 4,300 digits
    limit = MAX_SEED if name.endswith("seed") else MAX_COUNT
    if abs(value) > limit:
        raise ValueError(f"{subject}must be at most {limit:,}, got a number of {value.bit_length():,} bits")
