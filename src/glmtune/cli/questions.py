"""Where the questions of a chat come from, a terminal (`typed`) or a pipe, and where its notes go."""

import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

import click

ASK = "<|Human|>: "
STOP = ("stop", "quit", "exit", "退出")
CLEAR = ("clear", "清空")


def is_said(text: str, words: Sequence[str]) -> bool:
    """Whether a line is one of these words, in any case, perhaps behind a slash."""
    return text.lower().removeprefix("/") in words


class Questions(Protocol):
    """Questions, each without the space around it, as long as there are more."""

    is_terminal: bool
    """Whether Ctrl-C stops an answer alone."""
    keys: str
    """What can be typed besides text, for the greeting."""

    def ask_rounds(self) -> str | None:
        """Whether each question stands alone, "1", or is part of a conversation, "2"; None to leave."""

    def __iter__(self) -> Iterator[str]:
        """One after the other."""


class Piped:
    """The lines of a pipe or a file."""

    is_terminal = False
    keys = ""

    def ask_rounds(self) -> str | None:
        """Not asked: the first line is a question already."""
        return "2"

    def __iter__(self) -> Iterator[str]:
        """Each line is shown with its answer at a terminal, which has not shown it yet."""
        while line := sys.stdin.readline():
            if sys.stdout.isatty():
                note(f"\n{ASK}{line.strip()}")
            yield line.strip()


def open_questions() -> Questions:
    """Those of the terminal where this runs, if it is one; the answers may go elsewhere."""
    shown = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]
    if not (sys.stdin.isatty() and shown):
        return Piped()
    from prompt_toolkit.output import create_output

    from glmtune.cli.typed import Typed

    return Typed(create_output(shown[0]))


def note(text: str) -> None:
    """All but the answers: where these go to a pipe or a file, they go there alone."""
    click.echo(text, err=not sys.stdout.isatty())
