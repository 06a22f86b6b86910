"""Following a hint: each command, setting, page and Python name in it must lead somewhere."""

import inspect
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click

import glmtune
from glmtune.cli import glmtune as program
from glmtune.cli.data import COLUMN_SETTINGS
from glmtune.cli.hints import takes_settings
from glmtune.errors import CheckpointError, ConfigError
from glmtune.exports.kinds import KINDS
from glmtune.generate import Engine
from glmtune.recipe import load_recipe
from glmtune.recipe.describe import describe
from glmtune.recipe.names import methods_with

ROOT = Path(__file__).parents[1]
GROUPS = ("data", "train", "method", "samples", "evaluate", "retain")
SETTINGS = {row.key for row in describe()} | {"evaluate.max_rows"}
"""Those that there are, and an older name of one."""
WORD = re.compile(r"(?<![\w.\"'{[/-])([A-Za-z_][\w.]*)=([^\s;]*)")
"""`key=value` in plain text."""
DOTTED = re.compile(rf"(?<![\w./*])(?:{'|'.join(GROUPS)})\.[a-z_]+(?![\w(]|\.\w)")
FILES = ("json", "jsonl", "csv", "parquet", "pkl", "txt", "yaml", "xlsx", "py", "sh", "gz", "log")
PAGE = re.compile(r"(?<![=/\w])(?:docs|recipes|examples)/[\w./-]*\w")
EXTRA = re.compile(r"glmtune\[([\w-]+)\]")
CALL = re.compile(r"(?<![\w.])([A-Za-z_][\w.]*)\(([^()]*)\)")
PROGRAMS = {"git", "pip", "make"}
"""Programs that a hint may call besides ours."""
FOREIGN = {
    "close", "df.to_json", "json.dumps", "merge_and_unload", "model.count_positions", "model.eval",
    "model.save_pretrained",
}  # fmt: skip
"""Python names of other libraries, and methods of what one already has."""


def follow(hint: str) -> list[str]:
    """What in a hint leads nowhere."""
    found = list(follow_names(hint))
    plain = outside(hint)
    for name, given in CALL.findall(plain):
        found += follow_call(name, given)
    for key, _ in WORD.findall(CALL.sub("", plain)):
        name = "data.fill" if key.startswith("data.fill.") else key  # a table: the user names its keys
        if name not in SETTINGS and name not in arguments() and not name.isupper():
            found.append(f"{key}= is neither a setting nor an argument")
    found += [f"{option} stands in no command" for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", plain)]
    verbs = "|".join(program.commands)
    found += [f"`{words}` without backticks" for words in re.findall(rf"\bglmtune (?:{verbs})\b", plain)]
    return found


def outside(text: str) -> str:
    """A text without what stands in backticks."""
    return "".join(part for i, part in enumerate(text.split("`")) if i % 2 == 0)


def follow_names(text: str) -> Iterator[str]:
    """What leads nowhere of the commands, settings and pages in any text, be it a hint or not."""
    for command in text.split("`")[1::2]:
        yield from follow_command(command)
    plain = CALL.sub("", outside(text))
    for key, value in WORD.findall(plain):
        if not is_open(value):
            yield from follow_setting(key, value.strip("'\"").rstrip(",.:)?!'"))
    for key in DOTTED.findall(plain):
        if key not in SETTINGS and key.split(".")[1] not in FILES:
            yield f"{key} is no setting"
    yield from (f"no extra {name}" for name in EXTRA.findall(text) if name not in extras())
    yield from (f"{page} is not there" for page in PAGE.findall(plain) if not page_exists(page))


@cache
def extras() -> set[str]:
    """What `pip install glmtune[...]` knows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def page_exists(page: str) -> bool:
    return (ROOT / page).exists() or (ROOT / "src/glmtune" / page).exists()


def follow_setting(key: str, value: str) -> Iterator[str]:
    """A setting takes the value; `export` knows the kind."""
    if key == "to" and not is_open(value) and value not in KINDS:
        yield f"to={value} is no kind of export"
    if key not in SETTINGS or is_open(value):
        return
    method = methods_with(key.removeprefix("method."))[:1] if key.startswith("method.") else []
    try:
        load_recipe({"model": "-"}, [f"method={name}" for name in method] + [f"{key}={value}"])
    except ConfigError as err:
        if str(err).startswith(f"{key}:"):
            yield f"{key}={value}: {err}"


def is_open(value: str) -> bool:
    """Whether a value stands for one that the reader puts in."""
    return not value or "..." in value or "{}" in value or value.isupper()


@cache
def arguments() -> set[str]:
    """Names of the options of all verbs, and of the arguments of all public functions."""
    names = {str(p.name) for command in all_commands() for p in command.params}
    names |= {"enable_thinking", "position_ids", *COLUMN_SETTINGS}
    for called in (*(getattr(glmtune, name) for name in glmtune.__all__), Engine):
        names |= set(parameters(called))
    return names


def all_commands() -> Iterator[click.Command]:
    for command in program.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from command.commands.values()


def parameters(called: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(called).parameters)
    except (TypeError, ValueError):
        return []


def follow_call(name: str, arguments: str) -> Iterator[str]:
    """A call of Python's: the name is public, or stands in a module that one finds, and has the arguments."""
    if name in FOREIGN:
        return
    found: Any = glmtune
    for part in name.removeprefix("glmtune.").split("."):
        found = getattr(found, part, None) or getattr(generate(), part, None)
    if found is None:
        yield f"{name}(...) is no public name"
        return
    for key in re.findall(r"(\w+)=", arguments):
        if key not in parameters(found):
            yield f"{name} has no argument {key}"


def generate() -> Any:
    import glmtune.generate

    return glmtune.generate


def follow_command(text: str) -> Iterator[str]:
    """A command in backticks; anything else in them is quoted and leads nowhere by itself."""
    try:
        words = shlex.split(text)
    except ValueError:
        return
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[:1] in (["torchrun"], ["python"]) and "glmtune" in words:
        words = words[words.index("glmtune") :]
    if words[:1] == ["glmtune"] and len(words) > 1:
        yield from parse_command(words[1:], text)


def parse_command(words: list[str], text: str) -> Iterator[str]:
    if words in ([verb] for verb in program.commands):  # names the verb
        return
    words = words[:-1] if words[-1] == "..." and len(words) > 1 and words[0] == "train" else words
    command: click.Command = program
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        known = command.commands.get(words[0])
        if known is None:
            yield f"`{text}`: no verb {words[0]}"
            return
        command, words = known, words[1:]
    if words in (["--help"], ["--version"]):
        return
    words = ["glm-tiny" if re.fullmatch(r"[A-Z]+|\.\.\.", word) else word for word in words]
    try:
        made = command.make_context(command.name, list(words))
    except click.ClickException as err:
        yield f"`{text}`: {err.format_message()}"
        return
    except CheckpointError:  # its place is gone by now
        return
    if takes_settings(command):
        for word in made.params.get("words", ()):
            key, equals, value = word.partition("=")
            if equals:
                yield from follow_setting(key, value)


def unspoken(hint: str, command: click.Command) -> list[str]:
    """The settings in a hint that the verb which ran cannot say; `train.lr=...` is plainly another's."""
    if takes_settings(command) or isinstance(command, click.Group) or command.name == "settings":
        return []
    plain = CALL.sub("", outside(hint))
    keys = [key for key, _ in WORD.findall(plain)]
    return [f"{command.name} has no option for {key}=" for key in keys if key in SETTINGS and "." not in key]
