"""Parts that several verbs share: path types, output streams, texts in tables, loading options."""

import codecs
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmtune.log import LAUNCHED
from glmtune.paths import read_path
from glmtune.quants import QUANTS

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.measure import Measurement
    from rich.text import Text


def print_json(value: object, *, default: Callable[[object], str] | None = None) -> None:
    """Print a value as one indented JSON document; `default` writes what JSON has no form for."""
    import json

    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=default))


def leave_group() -> None:
    """Leave the group of processes; a process that exits within it can crash in a waiting thread."""
    if beating := sys.modules.get("glmtune.training.heartbeat"):
        beating.end()
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def settle_streams() -> None:
    """Set the standard streams so that no character raises an encoding error.

    A character that the console cannot show is printed escaped, like `\\u4f60`. Typed bytes that are no text
    come in as lone surrogates, which the readers of typed text refuse. Under an ASCII locale such as LANG=C
    stdin is read as UTF-8, as click does for output.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, TextIOWrapper):
        is_ascii = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if is_ascii else sys.stdin.encoding, errors="surrogateescape")


class PathType(click.ParamType[Path]):
    """Type of a path argument: expands `~`, refuses text that cannot be a path."""

    name = "path"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path. Raises `click.BadParameter`, which click shows with the argument's name."""
        try:
            return read_path(value)
        except ValueError as err:
            self.fail(str(err), param, ctx)


class ModelType(PathType):
    """Type of a path to a model, run or adapter: refuses one to nothing before torch is loaded."""

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path. Raises `click.BadParameter` and `CheckpointError`."""
        from glmtune.locations import require_here

        path = super().convert(value, param, ctx)
        require_here(path)
        return path


PATH, MODEL = PathType(), ModelType()


def program() -> str:
    """Return the command that calls this program, for hints: `glmtune` if it is on PATH."""
    called = sys.argv[0]
    if called.endswith("__main__.py") and not (LAUNCHED in os.environ and shutil.which("glmtune")):
        return "python -m glmtune"
    return "glmtune" if shutil.which("glmtune") else called


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 row`, `2 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plain(text: str) -> "Text | _Folded":
    """Return text for a rich table, brackets without meaning; Chinese text breaks between any characters."""
    from rich.text import Text

    is_chinese = any("\u4e00" <= character <= "\u9fff" for character in text)
    return _Folded(text) if is_chinese else Text(text)


class _Folded:
    """Text that fills each line of a table's cell, broken within words."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["Text"]:
        # rich breaks lines at spaces alone, and Chinese has none: a cell would stay half empty
        from rich.cells import chop_cells
        from rich.text import Text

        for line in self.text.split("\n"):
            yield from (Text(part) for part in chop_cells(line, options.max_width))

    def __rich_measure__(self, console: "Console", options: "ConsoleOptions") -> "Measurement":
        from rich.measure import Measurement
        from rich.text import Text

        # 2: the width of one Chinese character, the least that a column can be narrowed to
        return Measurement(2, Measurement.get(console, options, Text(self.text)).maximum)


def strength_option(default: float | None = 1.0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--strength`; a `default` of None leaves it to a recipe."""
    words = "How much of the tuning: base + STRENGTH x update; 0: the base, 1: as trained, up to 2."
    return click.option(
        "--strength", metavar="STRENGTH", type=float, default=default, show_default=True, help=words
    )


compute_option = click.option(
    "--compute",
    type=click.Choice(["exact", "fast", "auto"]),
    default="exact",
    show_default=True,
    help="fast: weights and activations in int8, on an x86 CPU; answers may differ. auto: that, if it is "
    "faster here.",
)


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for loading a model: `--dtype`, `--quant`, `--device`."""
    types, quants = click.Choice(["auto", "fp32", "bf16", "fp16"]), click.Choice(QUANTS)
    # in reverse: click shows the option that is added last first
    for option in (
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="cpu, cuda, cuda:1 and so on; balanced: one model over all cards.",
        ),
        click.option("--quant", type=quants, help="Quantise while loading; else as stored or trained."),
        click.option(
            "--dtype",
            type=types,
            default="auto",
            show_default=True,
            help="Type to compute in; auto: that of training, else what is stored and quick here.",
        ),
    ):
        command = option(command)
    return command


FORGOT = 3
"""Exit code of `--fail-on-forgetting`."""


def fail_on(verdict: str | None) -> None:
    """End with `FORGOT` if a model forgot what its base could, or if nothing was measured."""
    if verdict is None:
        click.echo(
            "error: --fail-on-forgetting: nothing was measured in this run\n"
            "hint: `glmtune evaluate RUN --general --fail-on-forgetting` measures it now",
            err=True,
        )
    if verdict in (None, "forgot"):
        sys.exit(FORGOT)
