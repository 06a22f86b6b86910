"""A recipe in the making: its settings, a comment at each trap it mends, and what became of every flag."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glmtune.errors import ConfigError
from glmtune.files import is_there
from glmtune.recipe import Recipe
from glmtune.recipe.flags import CARRIED, DROPPED, NOT_CARRIED, UNKNOWN, Reader
from glmtune.recipe.parse import check_values, read_values
from glmtune.strict import dump_yaml

LARGEST = 2**63
"""Of a number, up and down."""
LONGEST_LINE = 110


@dataclass
class RecipeDraft:
    """What a script or a configuration comes to."""

    where: str
    """Where it was read, as `train.sh:5`."""
    name: str
    """Its recipe's file, without the suffix."""
    folder: Path
    """Where its relative paths may begin."""
    flags: dict[str, str | None]
    """Those that nobody has taken yet."""
    unset: frozenset[str] = frozenset()
    verb: Literal["train", "evaluate", "chat"] = "train"
    settings: dict[str, Any] = field(default_factory=dict)
    """By their full names, as `train.lr`."""
    comments: dict[str, list[str]] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
    """Settings that the user must fill in, and why."""
    header: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """What to type, once its file is known."""
    facts: list[str] = field(default_factory=list)
    """What to know before it is typed."""
    warnings: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    processes: int = 1
    nodes: int = 1
    devices: str = ""
    output: str = ""
    """The folder that the program wrote to."""

    def put(self, key: str, value: Any, comment: str = "") -> None:
        """Set one setting."""
        self.settings[key] = value
        if comment:
            self.say(key, comment)

    def say(self, key: str, text: str) -> None:
        """Put a comment at a setting."""
        self.comments.setdefault(key, []).append(text)

    def mend(self, key: str, text: str) -> None:
        """Say at a setting which trap is mended there."""
        self.say(key, text)
        self.mended.append(text)

    def tell(self, key: str, text: str) -> None:
        """Say at a setting what to know of it before anything is typed."""
        self.say(key, text)
        self.facts.append(text)

    def warn(self, key: str, text: str) -> None:
        """Say at a setting what may stop it from running at all."""
        self.say(key, text)
        self.warnings.append(text)

    def take(self, name: str, default: str | None = None) -> str | None:
        """A flag's text, `default` where it is not given, and it counts as dealt with."""
        value = self.flags.pop(name, default)
        return default if value is None else value

    def number(self, name: str, default: str, read: Reader = int) -> Any:
        """A flag's number. Raises ConfigError if it is none."""
        return self.read(name, self.take(name, default) or default, read)

    def read(self, name: str, value: Any, reader: Reader) -> Any:
        """A setting's value. Raises ConfigError with its place if it is no number."""
        try:
            found = reader(value)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if isinstance(found, int | float) and not abs(found) <= LARGEST:
            raise ConfigError(
                f"{self.where}: {name} {value}: not a number that this setting can have",
                hint="put the number there, then migrate again",
            )
        return found

    def drop(self, name: str, why: str) -> None:
        """Deal with a flag by leaving it out, if it is there."""
        if name in self.flags:
            self.flags.pop(name)
            self.dropped[name] = why

    def lose(self, name: str, why: str) -> None:
        """Deal with a flag whose meaning is lost, if it is there."""
        if name in self.flags:
            value = self.flags.pop(name)
            self.lost[name if value is None else f"{name} {value}"] = why

    def put_path(self, key: str, text: str | None) -> None:
        """Set a file's or folder's setting; a variable that is set elsewhere leaves it open."""
        if text is None:
            return
        missing = sorted(name for name in self.unset if f"${name}" in text)
        if missing or "$(" in text or "`" in text:
            self.open[key] = f"{text} is set outside of the script"
        else:
            self.put(key, self.locate(text))

    def locate(self, text: str) -> str:
        """The full path of what is here, or else beside the script: so a recipe works from anywhere."""
        places = (Path(text), self.folder / text)
        return next((str(where.absolute()) for where in places if is_there(where)), text)

    def carry_rest(self) -> None:
        """Carry, drop or name every flag that is left."""
        for name in list(self.flags):
            value = self.flags[name]
            if name in CARRIED and value is not None:
                key, read = CARRIED[name]
                self.put(key, self.read(name, value, read))
                self.flags.pop(name)
            elif name in DROPPED:
                self.drop(name, DROPPED[name])
            else:
                self.lose(name, NOT_CARRIED.get(name, UNKNOWN))

    def check(self) -> None:
        """Raise ConfigError if no run could have these settings."""
        try:
            check_values(read_values(_nested(self.settings)))
        except ConfigError as err:
            raise ConfigError(f"{self.where}: {err}", hint=err.hint) from err

    def to_text(self) -> str:
        """The recipe as YAML with its comments."""
        lines = [line for text in self.header for line in _comment(text)]
        lines += [f"# {command}" for command in self.commands]
        for name in Recipe.model_fields:
            lines += self._lines(name, "")
            inner = [line for key in _keys_of(name) for line in self._lines(key, "  ")]
            lines += [f"{name}:", *inner] if inner else []
        return "\n".join(lines) + "\n"

    def _lines(self, key: str, indent: str) -> Iterator[str]:
        for text in self.comments.get(key, ()):
            yield from _comment(text, indent)
        name = key.rpartition(".")[2]
        if key in self.open:
            yield f"{indent}# {name}: {self.open[key]}: name it"
        elif key in self.settings:
            yield f"{indent}{name}: {show(self.settings[key])}"


def show(value: Any) -> str:
    """A value as YAML, on one line."""
    return dump_yaml(value, default_flow_style=True, width=10**6).strip().removesuffix("\n...")


def _keys_of(group: str) -> list[str]:
    """The settings inside of a group, in the order of the settings' page."""
    kind = Recipe.model_fields[group].annotation
    return [f"{group}.{name}" for name in getattr(kind, "model_fields", ())]


def _comment(text: str, indent: str = "") -> list[str]:
    """Lines of a comment; a path in it, hyphens and all, stays on one."""
    start = f"{indent}# "
    return textwrap.wrap(
        text, LONGEST_LINE, initial_indent=start, subsequent_indent=start,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in settings.items():
        group, dot, name = key.partition(".")
        if dot:
            values.setdefault(group, {})[name] = value
        else:
            values[group] = value
    return values
