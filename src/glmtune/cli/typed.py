"""The questions of a chat, typed at a terminal.

prompt_toolkit edits the line: it knows how wide a character is, keeps what was typed for the next time, and
takes a pasted text as one question.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from glmtune.cli.questions import ASK, note

ROUNDS = "您想体验【单轮对话】还是【多轮对话】？ 请输入（1 代表单轮，2 代表多轮）："
ROUNDS_KEYS = "1: each question on its own; 2 or Enter: a conversation"


class Typed:
    """Lines typed at a terminal."""

    is_terminal = True
    keys = (
        "Enter 发送，Alt-Enter 换行，↑ 找回以前的输入，Ctrl-C 停止回答，Ctrl-D 退出。\n"
        "Enter sends, Alt-Enter breaks the line, ↑ brings earlier lines back, Ctrl-C stops an answer, "
        "Ctrl-D leaves."
    )

    def __init__(self, output: Output | None = None) -> None:
        """`output`: where the line is shown; None: what prompt_toolkit takes for the terminal."""
        keys = KeyBindings()
        keys.add("escape", "enter")(_break_line)
        self._session: PromptSession[str] = PromptSession(
            history=Kept(kept_lines()), key_bindings=keys, enable_suspend=True, output=output
        )
        self._output = output

    def ask_rounds(self) -> str | None:
        """As `Questions` says; what is typed here is kept for no other time."""
        note(ROUNDS_KEYS)
        session: PromptSession[str] = PromptSession(output=self._output)
        while True:
            try:
                text = session.prompt(ROUNDS).strip() or "2"
            except (EOFError, KeyboardInterrupt):
                return None
            if text in ("1", "2"):
                return text
            if text == "stop":
                return None
            note("> 1, 2 or stop")

    def __iter__(self) -> Iterator[str]:
        """As `Questions` says; Ctrl-C clears the line, and leaves when it comes twice."""
        is_warned = False
        while True:
            try:
                text = self._session.prompt(f"\n{ASK}").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                if is_warned:
                    return
                is_warned = True
                note("> Ctrl-C again to leave")
                continue
            is_warned = False
            yield text


class Kept(FileHistory):
    """Earlier lines in a file; without them, and without keeping more, where it cannot be read or written."""

    def load_history_strings(self) -> Iterable[str]:
        """The newest first."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Add a line at the end."""
        with suppress(OSError):
            path = Path(os.fsdecode(self.filename))
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            super().store_string(string)


def kept_lines() -> Path:
    """The file of typed lines.

    Source: https://specifications.freedesktop.org/basedir-spec; Windows and macOS have folders of their own.
    """
    state = os.environ.get("XDG_STATE_HOME")
    if not state and sys.platform in ("win32", "darwin"):
        return Path(click.get_app_dir("glmtune", roaming=False), "chat_history")
    return Path(state or "~/.local/state", "glmtune", "chat_history").expanduser()


def _break_line(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")
