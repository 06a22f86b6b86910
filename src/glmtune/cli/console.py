"""What the verbs of the command line share: paths, streams, tables' texts, options."""

import codecs
import shutil
import sys
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from glmtune.paths import read_path
from glmtune.quants import QUANTS


def leave_group() -> None:
    """Processes that `torchrun` started part in order; one that just exits can crash in a waiting thread."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def settle_streams() -> None:
    """Let no character break a line: one that the console cannot show is spelled, like `\\u4f60`.

    What is typed and is no text comes in as half characters, which those who read it refuse. Where Python
    knows of no characters but ASCII, as under LANG=C, typed text is UTF-8, as click has it of printed text.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, TextIOWrapper):
        is_ascii = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if is_ascii else sys.stdin.encoding, errors="surrogateescape")


class PathType(click.ParamType[Path]):
    """A path that can be one, its home folder put in."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """As click has it: misuse is told with the name of the argument."""
        try:
            return read_path(value)
        except ValueError as err:
            self.fail(str(err), param, ctx)


class ModelType(PathType):
    """A path to a model, run or adapter: one to nothing is told before anything heavy is loaded."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Raises `CheckpointError`."""
        from glmtune.locations import require_here

        path = super().convert(value, param, ctx)
        require_here(path)
        return path


PATH, MODEL = PathType(), ModelType()


def program() -> str:
    """How the user calls this program: by its name where that is found, else as it was called."""
    called = sys.argv[0]
    if called.endswith("__main__.py"):
        return "python -m glmtune"
    return "glmtune" if shutil.which("glmtune") else called


def counted(number: int, noun: str) -> str:
    """A number of things, like `1 row` and `2 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plain(text: str) -> Any:
    """Text whose brackets are no markup; if it is Chinese, it breaks anywhere, not at spaces only."""
    from rich.text import Text

    is_chinese = any("\u4e00" <= character <= "\u9fff" for character in text)
    return _Folded(text) if is_chinese else Text(text)


class _Folded:
    """Text that fills each line of a cell."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.cells import chop_cells
        from rich.text import Text

        for line in self.text.split("\n"):
            yield from (Text(part) for part in chop_cells(line, options.max_width))

    def __rich_measure__(self, console: Any, options: Any) -> Any:
        from rich.measure import Measurement
        from rich.text import Text

        return Measurement(2, Measurement.get(console, options, Text(self.text)).maximum)


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a model is opened: `dtype`, `quant`, `device`."""
    types, quants = click.Choice(["auto", "fp32", "bf16", "fp16"]), click.Choice(QUANTS)
    for option in (
        click.option("--device", default="auto", show_default=True),
        click.option("--quant", type=quants, help="Quantise while loading; else as stored or trained."),
        click.option(
            "--dtype",
            type=types,
            default="auto",
            show_default=True,
            help="Type to compute in; auto: that of training, else what is stored and quick here.",
        ),
    ):  # the last added is shown first
        command = option(command)
    return command
