"""The draft of a recipe: its settings, a comment at each mended trap, and the fate of every flag."""

import math
import textwrap
from collections.abc import Iterator
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
"""Largest absolute value of a number in a script."""
LONGEST_LINE = 110
"""Letters of a comment line in a recipe."""


@dataclass
class RecipeDraft:
    """The recipe that a script or configuration comes to, before it is written.

    Every flag ends as a setting, or in `dropped` (it changes nothing) or `lost` (it has no counterpart).
    """

    where: str
    """The source's file and line, as `train.sh:5`."""
    name: str
    """Name of the recipe's file without suffix."""
    folder: Path
    """Folder that relative paths may begin from."""
    flags: dict[str, str | None]
    """Flags of the program that are not yet dealt with, by name."""
    unset: frozenset[str] = frozenset()
    """Shell variables that the script uses but does not set."""
    verb: Literal["train", "evaluate", "chat"] = "train"
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings by full name, as `train.lr`."""
    comments: dict[str, list[str]] = field(default_factory=dict)
    """Comments above a setting, by its full name."""
    open: dict[str, str] = field(default_factory=dict)
    """Settings that the user must fill in, with the reason."""
    header: list[str] = field(default_factory=list)
    """Comments at the top of the recipe."""
    commands: list[str] = field(default_factory=list)
    """Commands to type; known once the recipe's file is."""
    facts: list[str] = field(default_factory=list)
    """Facts to know before typing a command."""
    warnings: list[str] = field(default_factory=list)
    """Reasons why the run may fail."""
    mended: list[str] = field(default_factory=list)
    """Traps of the source that the recipe avoids."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Flags that change nothing, with the reason."""
    lost: dict[str, str] = field(default_factory=dict)
    """Flags with their values that have no counterpart, with the reason."""
    processes: int = 1
    """Processes on all nodes together."""
    nodes: int = 1
    devices: str = ""
    """CUDA_VISIBLE_DEVICES; empty if not set."""
    port: str = ""
    """Port of a page in the browser; empty for a program without one."""
    output: str = ""
    """The folder that the official program wrote to."""

    def put(self, key: str, value: object, comment: str = "") -> None:
        """Set a setting, with a comment above it."""
        self.settings[key] = value
        if comment:
            self.say(key, comment)

    def say(self, key: str, text: str) -> None:
        """Add a comment above a setting."""
        self.comments.setdefault(key, []).append(text)

    def mend(self, key: str, text: str) -> None:
        """Add a comment on a mended trap; the report lists it under mended."""
        self.say(key, text)
        self.mended.append(text)

    def tell(self, key: str, text: str) -> None:
        """Add a comment that the report also lists as a fact."""
        self.say(key, text)
        self.facts.append(text)

    def warn(self, key: str, text: str) -> None:
        """Add a comment that the report also lists as a warning."""
        self.say(key, text)
        self.warnings.append(text)

    def take(self, name: str, default: str | None = None) -> str | None:
        """Take a flag out and return its text; `default` if it is not given or has no value."""
        value = self.flags.pop(name, default)
        return default if value is None else value

    def number(self, name: str, default: str, read: Reader = int, *, least: float = -LARGEST) -> Any:
        """Take a flag out and return its number. Raises ConfigError if it is none, or below `least`."""
        return self.read(name, self.take(name, default) or default, read, least=least)

    def read(
        self,
        name: str,
        value: Any,  # Any: a flag's text, or whatever a YAML file holds
        reader: Reader,
        *,
        least: float = -LARGEST,
    ) -> Any:
        """Return a setting's value, converted. Raises ConfigError with file and line if it is no number."""
        try:
            converted = reader(value)
        except (TypeError, ValueError, OverflowError):
            converted = math.nan
        # `not <=`: nan is refused too
        if isinstance(converted, int | float) and not least <= converted <= LARGEST:
            raise ConfigError(
                f"{self.where}: {name} {value}: not a number that this setting can have",
                hint="put the number there, then migrate again",
            )
        return converted

    def drop(self, name: str, why: str) -> None:
        """Move a flag, if it is given, to `dropped`."""
        if name in self.flags:
            self.flags.pop(name)
            self.dropped[name] = why

    def lose(self, name: str, why: str) -> None:
        """Move a flag with its value, if it is given, to `lost`."""
        if name in self.flags:
            value = self.flags.pop(name)
            self.lost[name if value is None else f"{name} {value}"] = why

    def put_path(self, key: str, text: str | None) -> None:
        """Set a path setting; a path with a variable set outside of the script stays open."""
        if text is None:
            return
        missing = sorted(name for name in self.unset if f"${name}" in text)
        # `$(...)` and backticks: the output of a command that was not run
        if missing or "$(" in text or "`" in text:
            self.open[key] = f"{text} is set outside of the script"
        else:
            self.put(key, self.locate(text))

    def locate(self, text: str) -> str:
        """Return the absolute path of a file here or next to the script, so that the recipe works anywhere.

        A path that leads to neither is returned as it is.
        """
        candidates = (Path(text), self.folder / text)
        return next((str(path.absolute()) for path in candidates if is_there(path)), text)

    def carry_rest(self) -> None:
        """Deal with every flag that is left, by the tables of recipe/flags.py."""
        for name in list(self.flags):
            value = self.flags[name]
            # a flag without a value says nothing that a setting could hold
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
        values: dict[str, Any] = {}
        for key, value in self.settings.items():  # `train.lr` lies in the group `train`
            group, dot, name = key.partition(".")
            if dot:
                values.setdefault(group, {})[name] = value
            else:
                values[group] = value
        try:
            check_values(read_values(values))
        except ConfigError as err:
            raise ConfigError(f"{self.where}: {err}", hint=err.hint) from err

    def to_text(self) -> str:
        """Return the recipe as YAML with its comments, in the order of the settings' page."""
        lines = [line for text in self.header for line in _comment(text)]
        lines += [f"# {command}" for command in self.commands]
        for name in Recipe.model_fields:
            lines += self._lines(name, "")
            group = getattr(Recipe.model_fields[name].annotation, "model_fields", ())
            inner = [line for key in group for line in self._lines(f"{name}.{key}", "  ")]
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


def show(value: object) -> str:
    """Return a value as YAML on one line."""
    # PyYAML ends a lone scalar with the line `...`
    return dump_yaml(value, default_flow_style=True, width=10**6).strip().removesuffix("\n...")


def _comment(text: str, indent: str = "") -> list[str]:
    """Wrap a comment into lines; a path in it is never broken."""
    start = f"{indent}# "
    return textwrap.wrap(
        text, LONGEST_LINE, initial_indent=start, subsequent_indent=start,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
