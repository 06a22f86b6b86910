"""Where the questions of a chat come from: a terminal (`typed`) or the lines of a pipe."""

import sys
from collections.abc import Iterator
from typing import Protocol

import click

ASK = "<|Human|>: "


class Questions(Protocol):
    """Questions, each without the space around it, as long as there are more."""

    is_terminal: bool
    keys: str
    """What can be typed besides text, for the greeting."""

    def ask_rounds(self) -> str | None:
        """Whether each question stands alone, "1", or is part of a conversation, "2"; None to leave."""

    def __iter__(self) -> Iterator[str]:
        """One after the other."""


class Piped:
    """The lines of a pipe or a file, or typed ones whose answers go to one."""

    is_terminal = False
    keys = ""

    def ask_rounds(self) -> str | None:
        """Not asked: the first line is a question already."""
        return "2"

    def __iter__(self) -> Iterator[str]:
        """Each line is shown beside the answers, where no terminal has shown it."""
        is_typed = sys.stdin.isatty()
        while True:
            click.echo(f"\n{ASK}", nl=False, err=True)
            line = sys.stdin.readline()
            if not (line and is_typed):
                click.echo(line.rstrip("\n"), err=True)
            if not line:
                return
            yield line.strip()


def open_questions() -> Questions:
    """Those of the terminal where this runs, if it is one."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Piped()
    from glmtune.cli.typed import Typed

    return Typed()
