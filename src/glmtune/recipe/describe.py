"""The settings as a table: what help and the reference page print."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from glmtune.recipe.method import MethodSettings
from glmtune.recipe.settings import Recipe


@dataclass(frozen=True, slots=True)
class Description:
    """One setting as a reader sees it."""

    key: str
    kind: str
    default: str
    text: str


def describe(kind: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[Description]:
    """Yield every setting below `kind`, depth first, in the order of its fields."""
    for name, field in kind.model_fields.items():
        key = prefix + name
        members = [m for m in (get_args(field.annotation) or (field.annotation,)) if _is_group(m)]
        if not members:
            default = "required" if field.default is PydanticUndefined else _show(field.default)
            text = " ".join((field.description or "").split())
            yield Description(key, _type_name(field.annotation), default, text)
        for member in members:
            tag = member.model_fields.get("name") if len(members) > 1 else None
            if tag is not None:
                text = " ".join((member.__doc__ or "").split()) + _rate(member)
                yield Description(f"{key}.name", "choice", str(tag.default), text)
            fields = describe(member, f"{key}.")
            yield from (d for d in fields if tag is None or d.key != f"{key}.name")


def _rate(member: type[BaseModel]) -> str:
    """What an empty `train.lr` means with this method."""
    if not issubclass(member, MethodSettings):
        return ""
    return f" Its train.lr: {member.default_lr:g} ({member.lr_source})."


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _show(value: Any) -> str:
    if value is None or value == "":
        return "empty"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type_name(annotation: Any) -> str:
    members = (annotation, *get_args(annotation))
    choices = [c for member in members for c in get_args(member) if isinstance(c, str)]
    if choices:
        return " | ".join(dict.fromkeys(choices))
    members = get_args(annotation) if type(None) in get_args(annotation) else (annotation,)
    names = {"tuple": "list", "str": "text", "PosixPath": "file"}
    shown = [getattr(m, "__name__", str(m)) for m in members if m is not type(None)]
    return names.get(shown[0], shown[0]).lower().replace("path", "file")
