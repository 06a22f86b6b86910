"""The sources of training rows in `data.train`: files, folders and data sets, each with its own settings."""

import math
from collections.abc import Mapping, Sequence
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

Empty = Literal["error", "skip"]
"""Treatment of rows with an empty answer; see `Data.empty`."""


def known_charset(value: str) -> str:
    """Return the name of a character set. Raises `SettingError` for an unknown one."""
    if value != AUTO and find_codec(value) is None:
        raise SettingError(f"unknown character set {shown(value)}", hint=f"choose {KNOWN}")
    return value


_OF_SOURCES_ALONE = {"path", "max_rows", "weight", "ratio"}
"""Settings that `data` has not, or that mean something else there."""


class Source(Settings):
    """A source of training rows; its settings replace those of the same name in `data`."""

    path: Path
    """A file or folder of rows, or a Hub data set, as in `data.train`."""
    max_rows: int | None = Field(None, ge=1)
    """Use only its first rows, at most this many; held-out rows are drawn from these, too."""
    weight: float | None = Field(None, gt=0)
    """Its share of an epoch, relative to the weights of the other sources."""
    ratio: float | None = Field(None, gt=0, lt=1)
    """Its share of an epoch, as a part of the whole; sources without one share the rest."""
    charset: str = UTF8
    prompt_column: str | None = None
    response_column: str | None = None
    history_column: str | None = None
    input_column: str | None = None
    system_column: str | None = None
    ignore_columns: tuple[str, ...] = ()
    transcripts: Literal["turns", "text"] | None = None
    empty: Empty = "error"

    @property
    def reading(self) -> dict[str, Any]:
        """The source's own values of settings of `data`."""
        # those that are set, even to their default; `max_rows` counts the source, in `data` all sources
        return {name: getattr(self, name) for name in self.model_fields_set - _OF_SOURCES_ALONE}

    @model_validator(mode="after")
    def _one_share(self) -> "Source":
        if self.weight is not None and self.ratio is not None:
            raise SettingError(
                f"{self.path}: `weight` and `ratio` both set its share", hint="keep one of them"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        """Read a path alone as short for `{path: PATH}`."""
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
        """Write only the settings that are given; the path alone if there are no others."""
        named = {name: value for name, value in handler(self).items() if name in self.model_fields_set}
        return named["path"] if len(named) == 1 else named


_LIST = "name files, as in data.train=[a.json,b.json], or {path: a.json, max_rows: 100} in place of one"
_PATH = TypeAdapter(Path)
_SOURCES = TypeAdapter(tuple[Source, ...])


def _read(value: object) -> Path | tuple[Source, ...] | None:
    """Read one path or a list of sources; a single source without settings of its own becomes a path."""
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
    _check_shares(sources)
    # one plain path stays a path, so that a recipe is written back as it was read
    alone = sources[0]
    return alone.path if len(sources) == 1 and alone.model_fields_set == {"path"} else sources


def _check_shares(sources: Sequence[Source]) -> None:
    """Raise `SettingError` for weights and ratios that do not make up an epoch."""
    others = [source for source in sources if source.ratio is None]
    ratios = math.fsum(source.ratio for source in sources if source.ratio is not None)
    if others and ratios >= 1:
        raise SettingError(
            f"the ratios make {ratios:g}, which leaves nothing for {shown(str(others[0].path))}",
            hint="set ratios that make less than 1, or one for each source",
        )
    if not others and abs(ratios - 1) > _RATIO_ROUNDING:
        raise SettingError(
            f"the ratios make {ratios:g}, and every source has one",
            hint="set ratios that make 1, or leave out one of them: that source takes the rest",
        )
    without = [source for source in others if source.weight is None]
    if without and len(without) < len(others):
        raise SettingError(
            f"{shown(str(without[0].path))} has no weight, where other sources have one",
            hint="give each source a `weight`, or a `ratio`",
        )


_RATIO_ROUNDING = 1e-3
"""Error that ratios typed with three digits may have together."""


class _ReadShort:
    """Annotation of a field that `_read` reads."""

    def __get_pydantic_core_schema__(self, _: object, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(_read)


Sources = Annotated[Path | tuple[Source, ...] | None, _ReadShort()]
"""Type of `data.train`."""
