"""The sources of training rows: files, folders and data sets, each with settings of its own."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from glmtune.charset import AUTO, KNOWN, UTF8, find_codec
from glmtune.paths import find_rows
from glmtune.recipe.base import SettingError, Settings
from glmtune.values import shown


def known_charset(value: str) -> str:
    """The name of a character set. Raises `SettingError` for one that nobody knows."""
    if value != AUTO and find_codec(value) is None:
        raise SettingError(f"unknown character set {shown(value)}", hint=f"choose {KNOWN}")
    return value


class Source(Settings):
    """One source of training rows. What it names stands in place of `data`'s setting of that name."""

    path: Path
    """A file or folder of rows, or a Hub data set, as `data.train` may be."""
    max_rows: int | None = Field(None, ge=1)
    """Use only its first so many rows; those held out are drawn from these."""
    charset: str = UTF8
    prompt_column: str | None = None
    response_column: str | None = None
    history_column: str | None = None
    input_column: str | None = None
    system_column: str | None = None
    ignore_columns: tuple[str, ...] = ()
    transcripts: Literal["turns", "text"] | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """The settings of `data` that are its own: those that it names."""
        return {name: getattr(self, name) for name in self.model_fields_set - {"path", "max_rows"}}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """A path alone is short for `{path: PATH}`."""
        if isinstance(value, str | PathLike):
            return {"path": value}
        if not isinstance(value, Mapping | cls):
            raise SettingError(f"a file or a group of settings, got {shown(value)}", hint=_LIST)
        return value

    @field_validator("path", mode="after")
    @classmethod
    def _bundled(cls, path: Path) -> Path:
        return find_rows(path)

    @field_validator("charset")
    @classmethod
    def _known_charset(cls, value: str) -> str:
        return known_charset(value)

    @model_serializer(mode="wrap")
    def _named(self, handler: SerializerFunctionWrapHandler) -> Any:
        """What is named; a path alone where there is nothing else."""
        named = {name: value for name, value in handler(self).items() if name in self.model_fields_set}
        return named["path"] if len(named) == 1 else named


_LIST = "name files, as in data.train=[a.json,b.json], or {path: a.json, max_rows: 100} in place of one"
_PATH = TypeAdapter(Path)
_SOURCES = TypeAdapter(tuple[Source, ...])


def _read(value: Any) -> Path | tuple[Source, ...] | None:
    """One path, or several sources; one source without settings of its own is a path."""
    if value is None:
        return None
    if isinstance(value, Mapping | Source):
        value = [value]
    if not isinstance(value, list | tuple):
        return _PATH.validate_python(value)
    sources = _SOURCES.validate_python(value)
    if not sources:
        raise SettingError("an empty list", hint="name a training file: data.train=my.json")
    for index, source in enumerate(sources):
        if source in sources[:index]:
            raise SettingError(f"{shown(str(source.path))} is named twice", hint="name it once")
    alone = sources[0]
    return alone.path if len(sources) == 1 and alone.model_fields_set == {"path"} else sources


class _ReadShort:
    """Says of a field that `_read` reads it; it is written as it stands."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(_read)


Sources = Annotated[Path | tuple[Source, ...] | None, _ReadShort()]
"""What `data.train` holds."""
