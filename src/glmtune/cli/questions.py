"""The questions of a chat, read from a terminal (`typed`) or a pipe, and the stream for its notes."""

import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

import click

ASK = "<|Human|>: "
STOP = ("stop", "quit", "exit", "退出")
CLEAR = ("clear", "清空")


def is_said(text: str, words: Sequence[str]) -> bool:
    """True if a line is one of the words, in any case, with or without a slash before it."""
    return text.lower().removeprefix("/") in words


class Questions(Protocol):
    """The user's questions, one after another, without surrounding space."""

    is_terminal: bool
    """True if Ctrl-C stops an answer and the chat goes on."""
    keys: str
    """Keys besides text, for the greeting."""

    def ask_rounds(self) -> str | None:
        """Return "1" if each question stands alone, "2" for a conversation; None to leave."""

    def __iter__(self) -> Iterator[str]:
        """Yield each question."""


class Piped:
    """Questions from the lines of a pipe or a file."""

    is_terminal = False
    keys = ""

    def ask_rounds(self) -> str | None:
        """Return "2" without asking: the first line is a question already."""
        return "2"

    def __iter__(self) -> Iterator[str]:
        """Yield each line; show it first if the answers go to a terminal, for nobody has typed it there."""
        while line := sys.stdin.readline():
            if sys.stdout.isatty():
                note(f"\n{ASK}{line.strip()}")
            yield line.strip()


def open_questions() -> Questions:
    """Return the questions typed at the terminal, if there is one, else those of the pipe."""
    # the answers may go to a file: then the prompt is shown on stderr
    screens = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]
    if not (sys.stdin.isatty() and screens):
        return Piped()
    from prompt_toolkit.output import create_output

    from glmtune.cli.typed import Typed

    return Typed(create_output(screens[0]))


def note(text: str) -> None:
    """Print a line that is no answer; to stderr if stdout is a pipe or a file, which gets answers only."""
    click.echo(text, err=not sys.stdout.isatty())
