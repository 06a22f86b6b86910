"""The settings as a table, in English or Chinese, for help texts and the reference pages."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from glmtune.files import read_text
from glmtune.language import Language
from glmtune.recipe.base import NameIn, choices
from glmtune.recipe.method import MethodSettings
from glmtune.recipe.settings import Recipe
from glmtune.strict import load_yaml

CHINESE_TEXTS = Path(__file__).with_name("settings.zh.yaml")
_CHINESE_WORDS = {
    "text": "文本", "file": "文件", "folder": "文件夹", "list": "列表", "int": "整数", "float": "小数",
    "bool": "是或否", "table": "对照表", "empty": "空", "required": "必填",
}  # fmt: skip
_FOLDERS = ("base", "output")
"""Settings whose path is a folder's."""


@dataclass(frozen=True, slots=True)
class Description:
    """A row of the table of settings."""

    key: str
    kind: str
    default: str
    text: str
    typed: frozenset[str] = frozenset()
    """Words of `kind` that are typed as they are, in every language: the choices."""
    paths: tuple[str, ...] = ()
    """Keys of its text in settings.zh.yaml: its own, `method.lora.r`, before the one that methods share."""
    rate: float | None = None
    """Learning rate if `train.lr` is empty; only in the row of a method's name."""
    rate_source: str = ""


def describe(language: Language = "en") -> Iterator[Description]:
    """Yield every setting of a recipe, depth first, in the order of its fields."""
    translate = {"en": _in_english, "zh": _in_chinese}[language]
    return map(translate, _walk(Recipe))


def _walk(kind: type[BaseModel], prefix: str = "", owner: str = "") -> Iterator[Description]:
    """Yield every setting below `kind`; `owner`: path of the method that the settings belong to."""
    for name, field in kind.model_fields.items():
        key = prefix + name
        members = choices(field)
        if members:
            # a row for each method's name, followed by the settings of that method
            for tag, member in members.items():
                path = f"{key}.{tag}"
                # a name whose type is that name alone, as a Literal of one word
                text = _flat(member.__doc__)
                row = Description(f"{key}.name", tag, field.default.name, text, paths=(path,))
                if issubclass(member, MethodSettings):
                    row = replace(row, rate=member.default_lr, rate_source=member.lr_source)
                yield row
                yield from (d for d in _walk(member, f"{key}.", path) if d.key != f"{key}.name")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _walk(field.annotation, f"{key}.")
        else:
            default = "required" if field.default is PydanticUndefined else _show(field.default)
            paths = (f"{owner}.{name}", key) if owner else (key,)
            types, typed = _name_types(field.annotation)
            kind_name = "folder" if key in _FOLDERS else " | ".join([*types, *typed])
            yield Description(key, kind_name, default, _flat(field.description), frozenset(typed), paths)


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _in_english(row: Description) -> Description:
    if row.rate is None:
        return row
    return replace(row, text=f"{row.text} Its train.lr: {row.rate:g} ({row.rate_source}).")


def _in_chinese(row: Description) -> Description:
    texts = _read_chinese()
    text = texts[next((path for path in row.paths if path in texts), row.paths[0])]
    if row.rate is not None:
        text += f"它的 train.lr：{row.rate:g}（{texts[f'{row.paths[0]}.lr']}）。"
    words = row.kind.split(" | ")
    kind = " | ".join(word if word in row.typed else _CHINESE_WORDS.get(word, word) for word in words)
    return replace(row, kind=kind, default=_CHINESE_WORDS.get(row.default, row.default), text=text)


@cache
def _read_chinese() -> Mapping[str, str]:
    texts: Mapping[str, str] = load_yaml(read_text(CHINESE_TEXTS))
    return texts


def _show(value: object) -> str:
    if value in (None, "", (), {}):
        return "empty"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _name_types(annotation: object) -> tuple[list[str], list[str]]:
    """Name a field's types for a reader, without None, and its choices: words that are typed as they are."""
    members = (annotation, *get_args(annotation))
    # the arguments of a Literal are the choices themselves; an Annotated's may hold a table of names
    marks = [mark for member in members for mark in get_args(member)]
    choices = [c for mark in marks for c in (mark.table if isinstance(mark, NameIn) else [mark])]
    choices = [str(c) for c in choices if isinstance(c, str | int)]
    is_union = get_origin(annotation) in (Union, UnionType)
    kinds = get_args(annotation) if is_union else (annotation,)
    # a text of a form, `N tokens`, has that as its title
    forms = [mark.title for member in members for mark in get_args(member) if isinstance(mark, FieldInfo)]
    plain = [kind for kind in kinds if not (choices and get_args(kind))]
    names = {"tuple": "list", "str": "text", "Path": "file", "Mapping": "table"}
    shown = [getattr(m, "__name__", str(m)) for m in plain if m is not type(None)]
    types = list(dict.fromkeys(names.get(name, name) for name in shown))
    return types, list(dict.fromkeys([*filter(None, forms), *choices]))
