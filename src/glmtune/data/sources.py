"""The sources of training rows, read in their order; a hint names the settings that one source has alone."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glmtune.data.reader import Dataset, SeveralFilesError, read_dataset
from glmtune.errors import ConfigError, DataError
from glmtune.paths import setting_of
from glmtune.recipe.parse import read_values
from glmtune.recipe.settings import Data
from glmtune.recipe.source import Source
from glmtune.strict import load_yaml

_KEY = rf"data\.(?:{'|'.join(name for name in Source.model_fields if name not in ('path', 'max_rows'))})"
_WORD = rf"""(?:'{_KEY}=(?:[^']|'"'"')*'|{_KEY}=[\w.-]+)"""
_WORDS = re.compile(f"{_WORD}(?: {_WORD})*")
"""Settings in a hint that a source can have of its own, as a shell takes them."""
_NAME = re.compile(rf"{_KEY}\b")
_PLAIN = re.compile(r"[\w./:~+-]+")


def read_sources(settings: Data) -> list[Dataset]:
    """Read the training rows, source by source; each example knows the number of its source.

    Errors as of `read_examples`, which name the source.
    """
    return [_read_source(index, settings) for index in range(len(settings.sources))]


def _read_source(index: int, settings: Data) -> Dataset:
    source = settings.sources[index]
    is_item = isinstance(settings.train, tuple)
    try:
        found = read_dataset(source.path, settings.of_source(source))
    except SeveralFilesError as err:
        way = f"name each in its place: {', '.join(err.names)}" if is_item else ""
        if not is_item and (word := setting_of(err.names)):
            way = f"train on all of them: {word}"
        raise (err.leading(way) if way else err) from None
    except (ConfigError, DataError) as err:
        if not is_item:
            raise
        named = source.reading and isinstance(err, ConfigError)
        where = f"data.train.{index}: {source.path}: " if named else ""
        raise type(err)(f"{where}{err}", hint=_of_item(err.hint, source, settings)) from None
    examples = [replace(example, source=index) for example in found.examples] if index else found.examples
    return replace(found, examples=examples)


def _of_item(hint: str, source: Source, settings: Data) -> str:
    """The hint with the settings for this source alone: `data.X=...` would be for all sources."""

    def item(named: Mapping[str, Any]) -> str:
        own = {name: getattr(source, name) for name in Source.model_fields if name in source.model_fields_set}
        if ignored := named.get("ignore_columns"):
            before = settings.of_source(source).ignore_columns
            named = {**named, "ignore_columns": list(dict.fromkeys([*before, *ignored]))}
        return _flow({**own, "path": str(source.path), **named})

    told = _WORDS.sub(lambda found: item(read_values({}, shlex.split(found[0]))["data"]), hint)
    if told == hint and (names := _NAME.findall(hint)):
        keys = [name.removeprefix("data.") for name in names]
        short = _NAME.sub(lambda found: found[0].removeprefix("data."), hint)
        told = f"{short}: {item(dict.fromkeys(keys, '...'))}"
    return told if told == hint else f"{told}; so it stands in data.train, in place of {source.path}"


def _flow(value: Any) -> str:
    """A value as YAML in one line, with no more quotes than it needs."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_flow(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    is_plain = isinstance(value, str) and _PLAIN.fullmatch(value) and load_yaml(f"[{value}]") == [value]
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)
