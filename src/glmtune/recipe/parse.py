"""Reads YAML, dicts and `key=value` words into a `Recipe`; every error names the setting."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeGuard, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from glmtune.charset import NotTextError, decode_given
from glmtune.errors import ConfigError
from glmtune.files import given_path, load_bytes, unreadable
from glmtune.log import tell
from glmtune.near import nearest
from glmtune.paths import as_written, find_recipe
from glmtune.recipe.base import OneOf, choices
from glmtune.recipe.describe import describe
from glmtune.recipe.method import METHOD_SETTINGS, Method
from glmtune.recipe.names import in_item, methods_with, name_here, nearest_setting, value_here
from glmtune.recipe.settings import Recipe
from glmtune.strict import (
    HALF_CHARACTER,
    UnfitYamlError,
    dump_yaml,
    load_yaml,
    parse_yaml,
    yaml_error,
)
from glmtune.values import shown

RIVALS = (
    ({"train.steps"}, {"train.epochs"}),
    ({"data.max_tokens"}, {"data.max_source_tokens", "data.max_target_tokens"}),
    ({"method.num_layers"}, {"method.patterns"}),
    ({"data.max_test_rows"}, {"evaluate.max_rows"}),
)
"""Pairs of settings that exclude each other: one that is set in a later layer clears the other below it."""

NAMED = {key: field.default.name for key, field in Recipe.model_fields.items() if choices(field)}
"""Groups whose `name` chooses their settings type -> the default name."""

MOST_PARTS = 9
"""Most dots in a setting's name, and levels of a dict: more than any setting has."""

Part = TypeVar("Part", bound=BaseModel)
RecipeSource = str | Path | Mapping[str, Any] | Recipe


def load_recipe(source: RecipeSource, overrides: Sequence[str] = ()) -> Recipe:
    """Build a recipe from a YAML file, a dict or a recipe, with `key=value` words on top.

    Relative paths stay relative to the working directory. Raises `ConfigError`.
    """
    return build_recipe(read_values(source, overrides))


def read_values(source: RecipeSource, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings that a source and the words on top of it set, without defaults or checks."""
    if isinstance(source, Recipe):
        values = source.model_dump(exclude_unset=True)
        for key in NAMED.keys() & values.keys():
            values[key]["name"] = getattr(source, key).name  # unset in `Lora(r=4)`: its type says it
    elif isinstance(source, Mapping):
        values = _copy(source)
    else:
        values = _read_yaml(given_path(source))
    # `data.train: FILE` in YAML is short for `data: {train: FILE}`
    for key in [key for key in values if isinstance(key, str) and "." in key]:
        value = values.pop(key)
        group, name = _group_of(values, key)
        if name in group:
            raise ConfigError(f"{key}: given twice, once inside a group", hint="leave one of them out")
        group[name] = value
    for word in overrides:
        _apply(values, word)
    # after the words: `train.epochs=2` replaces a file's `train.steps`, but `train.epochs=null` does not
    _clear_rivals(values, {word.partition("=")[0] for word in overrides if not word.endswith("=null")})
    for key in NAMED:  # `method: lora` is short for `method: {name: lora}`
        if isinstance(values.get(key), str):
            values[key] = {"name": values[key]}
    return values


def join_layers(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge layers of settings, later ones on top of earlier ones."""
    values: dict[str, Any] = {}
    for layer in layers:
        _lay_over(values, layer)
        groups = {key: group for key, group in layer.items() if isinstance(group, Mapping)}
        set_here = {
            f"{key}.{name}" for key, group in groups.items() for name in group if group[name] is not None
        }
        _clear_rivals(values, set_here)
    return values


def build_recipe(*layers: Mapping[str, Any]) -> Recipe:
    """Build a recipe from layers of settings, merged by `join_layers`; a method without a name is LoRA.

    Raises `ConfigError`.
    """
    return build_part(Recipe, _with_names(join_layers(*layers)))


def check_values(values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a value that no recipe can have. Required settings may be missing."""
    try:
        _check_paths(Recipe.model_validate(_with_names(join_layers(values))))
    except ValidationError as err:
        # the values of a script to migrate are a part of a recipe: no `model`, for example
        wrong = [problem for problem in err.errors() if problem["type"] != "missing"]
        if wrong:
            raise _explain(wrong[0]) from None


def _with_names(values: dict[str, Any]) -> dict[str, Any]:
    for key, name in NAMED.items():
        if isinstance(values.get(key), dict):
            values[key].setdefault("name", name)
    return values


def build_part(kind: type[Part], values: Mapping[str, Any], *where: str) -> Part:
    """Build one group of settings alone; `where`: its location in a recipe, such as `data`.

    Raises `ConfigError`, which names the setting as in a whole recipe.
    """
    try:
        part = kind.model_validate(values)
    except ValidationError as err:
        raise _explain(err.errors()[0], where) from None
    _check_paths(part, "".join(f"{name}." for name in where[:1]))
    return part


def read_method(values: Mapping[str, Any]) -> Method:
    """Build a method alone, from a card's or a recipe's settings; one without a name is LoRA.

    Raises `ConfigError`.
    """
    try:
        method: Method = OneOf(METHOD_SETTINGS).read({"name": NAMED["method"], **values})
    except ValidationError as err:
        raise _explain(err.errors()[0], ("method",)) from None
    return method


def _check_paths(settings: BaseModel, group: str = "") -> None:
    """Raise `ConfigError` for a Windows path whose backslashes YAML has turned into line breaks or tabs."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            _check_paths(value, f"{name}.")
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    _check_paths(item, f"{group}{name}.{index}.")
        elif isinstance(value, Path) or name == "model":
            written = as_written(str(value))  # with \n and the like as escapes again
            if written != str(value):
                slashes = written.replace("\\", "/")
                raise ConfigError(
                    f"{group}{name}: {written}: in double quotes a backslash begins an escape, as \\n does",
                    hint=f"write the path in single quotes, or with /: '{written}', {slashes}",
                )


def to_yaml(recipe: Recipe) -> str:
    """Write a recipe as YAML text, with every setting spelled out."""
    return dump_yaml(recipe.model_dump(mode="json"))


def _read_yaml(path: Path) -> dict[str, Any]:
    if (bundled := find_recipe(path)) != path:
        tell(f"{path}: not here, so the bundled one, {bundled}")
        path = bundled
    try:
        values = parse_yaml(decode_given(load_bytes(path), str(path)).text, str(path))
    except OSError as err:
        raise unreadable(path, err, ConfigError, hint=_no_recipe(path)) from None
    except NotTextError as err:
        raise ConfigError(f"{path}:{err.line}: {err}", hint=err.hint) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: {'rows' if isinstance(values, list) else 'text'}, not a recipe of `key: value` lines",
            hint=_no_recipe(path),
        )
    return values


def _no_recipe(path: Path) -> str:
    """Return the hint for a file that is no recipe."""
    if joined := _joined(str(path)):
        return joined
    if path.suffix in (".yaml", ".yml"):
        return "name a recipe that is there, or none: `glmtune train model=MODEL data.train=FILE`"
    if path.suffix:
        return f"rows go in as data.train={path}; `glmtune settings` lists what a recipe can say"
    return f"name a recipe or a run that is there, as `glmtune runs` lists them; a model: model={path}"


def _joined(word: str) -> str:
    """Return the hint for a setting with a space between key and value; empty for other words."""
    return f"write it without spaces: {word}=..." if any(row.key == word for row in describe()) else ""


def _copy(value: Any, depth: int = 0) -> Any:  # Any: a setting's value, returned with its own type
    """Copy mappings and lists at every level. Raises `ConfigError` if they are nested too deep."""
    if depth > MOST_PARTS:
        raise ConfigError(
            f"settings nested more than {MOST_PARTS} deep", hint="`glmtune settings` lists all, none so deep"
        )
    if isinstance(value, Mapping):
        return {key: _copy(inner, depth + 1) for key, inner in value.items()}
    return [_copy(inner, depth + 1) for inner in value] if isinstance(value, list) else value


def _lay_over(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        below = values.get(key)
        # a method replaces the method below it: the settings of another one would not fit
        if isinstance(value, Mapping) and isinstance(below, dict) and key not in NAMED:
            _lay_over(below, value)
        else:
            values[key] = _copy(value)


def _clear_rivals(values: dict[str, Any], named: set[str]) -> None:
    """Remove the rivals of settings `named` in a layer; if it names both, they stay, which is an error."""
    for one, other in (*RIVALS, *((b, a) for a, b in RIVALS)):
        if named & one and not named & other:
            for key in other:
                group, _, name = key.partition(".")
                if isinstance(values.get(group), dict):
                    values[group].pop(name, None)


def _apply(values: dict[str, Any], word: str) -> None:
    """Set one word such as `train.lr=2e-4`."""
    key, equals, text = word.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"{word!r}: expected key=value", hint=_joined(word) or "for example train.lr=2e-4")
    if HALF_CHARACTER.search(word):
        raise ConfigError(f"{word!a}: is not UTF-8 text", hint="rename the file, or write UTF-8")
    data = values.get("data")
    fill = data.get("fill") if isinstance(data, Mapping) else None
    if isinstance(fill, Mapping) and key in fill.keys() - Recipe.model_fields.keys():
        key = f"data.fill.{key}"
    group, name = _group_of(values, key)
    group[name] = _read_value(key, text)


def _group_of(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Return the dict that holds a setting, added if missing, and the setting's name in it."""
    *parents, last = key.split(".", MOST_PARTS)
    for parent in parents:
        inner = values.get(parent)
        if isinstance(inner, str) and parent in NAMED:
            inner = {"name": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {parent} has no settings inside", hint="`glmtune settings` lists all")
        values[parent] = inner
        values = inner
    return values, last


def _read_value(key: str, text: str) -> Any:
    """Read the value of a `key=value` word: for text and paths the word itself, for others as YAML."""
    kinds = _kinds_of(key)
    is_list = any(get_origin(kind) is tuple for kind in kinds)
    is_unclosed = text[:1] in ("[", "{") and any(
        text.count(start) > text.count(end) for start, end in ("[]", "{}")
    )
    if is_list and Path in kinds and is_unclosed and not Path(text).exists():
        raise ConfigError(
            f"{key}: {text}: a list that nothing closes",
            hint=f"write all of it as one word, in quotes: '{key}=[a.json, b.json]'",
        )
    is_bracketed = (text[:1], text[-1:]) in {("[", "]"), ("{", "}")}
    # a path or a list of paths: a file whose name has brackets is a path
    if kinds & {str, Path} and not (is_list and is_bracketed and not Path(text).exists()):
        return None if text == "null" and type(None) in kinds else text
    try:
        value = load_yaml(text)
    except UnfitYamlError as err:
        raise yaml_error(err, key) from None
    except yaml.YAMLError:  # not YAML, so text; the validation refuses it if it must be something else
        value = text
    return [value] if is_list and isinstance(value, str) else value


def _kinds_of(key: str) -> set[Any]:
    """Return the types that a setting may have; empty for an unknown setting."""
    kinds: set[Any] = {Recipe}
    for part in key.split("."):
        inner: set[Any] = set()
        for kind in kinds:
            if get_origin(kind) is Mapping:  # of names to texts
                inner.update(get_args(get_args(kind)[1]))
            elif _is_group(kind) and part in kind.model_fields:
                annotation = kind.model_fields[part].annotation
                is_union = get_origin(annotation) in (Union, UnionType)
                inner.update(get_args(annotation) if is_union else (annotation,))
        kinds = inner
    return kinds


def _explain(first: ErrorDetails, above: Sequence[str] = ()) -> ConfigError:
    """Turn pydantic's error into ours, one sentence and a hint; `above`: location of the part in a recipe."""
    location = (*above, *first["loc"])
    # pydantic puts the names of some validators into the location
    where = [str(part) for part in location if part != "function-after"]
    if len(where) > 1 and where[0] in NAMED:
        where.pop(1)  # the tag of the union stands in pydantic's path, not in the user's
    key, value = ".".join(where) or "recipe", first["input"]
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{key}: unknown setting", hint=_unknown(key, location, value))
    if key in NAMED and (first["type"] == "union_tag_invalid" or not isinstance(value, Mapping)):
        tag = value.get("name") if isinstance(value, Mapping) else value
        allowed = list(choices(Recipe.model_fields[key]))
        hint = value_here(key, tag, allowed) if isinstance(tag, str) else ""
        return ConfigError(
            f"{key}: unknown {key} {shown(tag)}", hint=hint or f"allowed: {', '.join(allowed)}"
        )
    if first["type"] == "missing":
        is_item = any(isinstance(part, int) for part in location)  # of a list, which no word can name
        hint = _explained(where) if is_item else f"add it to the recipe, or set {key}=..."
        return ConfigError(f"{key}: missing", hint=hint)
    if first["type"] == "model_type":
        hint = f"data.train={value} names training rows" if key == "data" and isinstance(value, str) else ""
        return ConfigError(f"{key}: a group of settings, got {shown(value)}", hint=hint or _explained(where))
    # all other types: pydantic's sentence, or that of a `SettingError`, which brings its own hint
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, got {shown(value)}"
    hint = getattr(first.get("ctx", {}).get("error"), "hint", "")
    if first["type"] == "literal_error":
        hint = value_here(key, value, re.findall("'(.*?)'", first["ctx"]["expected"]))
    return ConfigError(f"{key}: {message}", hint=hint or _explained(where))


def _explained(where: Sequence[str]) -> str:
    """Return the hint with the command that explains a setting, or else its group."""
    keys = {row.key for row in describe()}
    known = keys | {key.partition(".")[0] for key in keys}
    parts = [".".join(where[:end]) for end in (2, 1)]
    return f"`{' '.join(('glmtune settings', *[part for part in parts if part in known][:1]))}` explains it"


def _unknown(key: str, location: Sequence[str | int], value: object) -> str:
    """Return the hint for an unknown setting: of another program, of another group, or misspelled."""
    name, siblings = str(location[-1]), _fields_at(location[:-1])
    # a setting of another method, such as method.r under ptuning; location[1] is the method's name
    if methods := methods_with(name) if location[0] == "method" else ():
        return f"it is one of method.name={' or '.join(methods)}; {location[1]} has {', '.join(siblings)}"
    if isinstance(value, dict) and value and not nearest(name, siblings):
        # another program's group, such as lora.r: the first setting in it counts
        name, value = next((str(inner), held) for inner, held in value.items())
    if any(isinstance(part, int) for part in location):
        hint = in_item(name, siblings, value)
    else:
        hint = name_here(name, value) or nearest_setting(key, siblings, value)
    return hint or f"known here: {', '.join(siblings)}"


def _fields_at(location: Sequence[str | int]) -> list[str]:
    """Return the names of all settings of the group at this location."""
    kind: Any = Recipe
    members: Mapping[str, Any] = {}
    for part in location:
        if isinstance(part, int):  # an item of a list, of which the settings are the only kind with any
            kind = next(item for member in get_args(kind) for item in get_args(member) if _is_group(item))
        elif members:  # the part is the name that chooses
            kind, members = members[part], {}
        else:
            field = kind.model_fields[part]
            kind, members = field.annotation, choices(field)
    return list(kind.model_fields)


def _is_group(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
