"""Read the sources of training rows, in order, with hints for the settings of the source at fault."""

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
"""Words of a hint such as `data.charset=gbk`, quoted as for a shell: settings that a source can have."""
_NAME = re.compile(rf"{_KEY}\b")
_PLAIN = re.compile(r"[\w./:~+-]+")


def read_sources(settings: Data) -> list[Dataset]:
    """Read the training rows, source by source; each example gets the number of its source.

    Errors as of `read_examples`, with hints for the source's own settings.
    """
    is_list = isinstance(settings.train, tuple)
    datasets = []
    for index, source in enumerate(settings.sources):
        try:
            dataset = read_dataset(source.path, settings.of_source(source))
        except SeveralFilesError as err:
            way = f"name each in its place: {', '.join(err.names)}" if is_list else ""
            if not is_list and (word := setting_of(err.names)):
                way = f"train on all of them: {word}"
            raise (err.leading(way) if way else err) from None
        except (ConfigError, DataError) as err:
            if not is_list:
                raise
            is_its_setting = source.reading and isinstance(err, ConfigError)
            where = f"data.train.{index}: {source.path}: " if is_its_setting else ""
            raise type(err)(f"{where}{err}", hint=_hint_for_source(err.hint, source, settings)) from None
        if index:  # 0 is what examples are read with
            examples = [replace(example, source=index) for example in dataset.examples]
            dataset = replace(dataset, examples=examples)
        datasets.append(dataset)
    return datasets


def _hint_for_source(hint: str, source: Source, settings: Data) -> str:
    """Return a hint with its settings put into the source's item: `data.X=...` is for all sources."""

    def item(named: Mapping[str, Any]) -> str:
        own = {name: getattr(source, name) for name in Source.model_fields if name in source.model_fields_set}
        if ignored := named.get("ignore_columns"):
            # the item's own list replaces that of `data.ignore_columns`: it repeats what was ignored so far
            before = settings.of_source(source).ignore_columns
            named = {**named, "ignore_columns": list(dict.fromkeys([*before, *ignored]))}
        return _one_line_yaml({**own, "path": str(source.path), **named})

    new_hint = _WORDS.sub(lambda words: item(read_values({}, shlex.split(words[0]))["data"]), hint)
    if new_hint == hint and (names := _NAME.findall(hint)):
        keys = [name.removeprefix("data.") for name in names]
        short = _NAME.sub(lambda name: name[0].removeprefix("data."), hint)
        new_hint = f"{short}: {item(dict.fromkeys(keys, '...'))}"
    return hint if new_hint == hint else f"{new_hint}; so it stands in data.train, in place of {source.path}"


def _one_line_yaml(value: object) -> str:
    """Return a value as YAML in one line, with no more quotes than it needs."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_one_line_yaml(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_one_line_yaml, value))}]"
    # bare text must be loaded back as the same text, which `1`, `no` and `a: b` are not
    is_plain = isinstance(value, str) and _PLAIN.fullmatch(value) and load_yaml(f"[{value}]") == [value]
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)
