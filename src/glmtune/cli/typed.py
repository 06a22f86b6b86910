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
from prompt_toolkit.key_binding.key_processor import KeyProcessor
from prompt_toolkit.output import Output

from glmtune.cli.questions import ASK, STOP, is_said, note

ROUNDS = "您想体验【单轮对话】还是【多轮对话】？ 请输入（1 代表单轮，2 代表多轮）："
ONE_ROUND, MORE_ROUNDS = ("1", "单轮", "单轮对话"), ("", "2", "多轮", "多轮对话")
ROUNDS_KEYS = "1: each question on its own; 2 or Enter: a conversation"


class Typed:
    """Lines typed at a terminal."""

    is_terminal = True
    keys = (
        "Enter 发送 send, Alt-Enter 换行 break, ↑ 历史 back, "
        "Ctrl-C 停止 halt, clear 清空 forget, stop 退出 quit"
    )

    def __init__(self, output: Output | None = None) -> None:
        """`output`: where the line is shown; None: what prompt_toolkit takes for the terminal."""
        keys = KeyBindings()
        keys.add("escape", "enter")(_break_line)
        self._session: PromptSession[str] = PromptSession(
            history=LineHistory(kept_lines()), key_bindings=keys, enable_suspend=True, output=output
        )
        self._rounds_session: PromptSession[str] = PromptSession(output=output)
        self._first: str | None = None
        self._num_keys = 0
        for session in (self._session, self._rounds_session):
            session.app.key_processor.before_key_press += self._count_key

    def ask_rounds(self) -> str | None:
        """As `Questions` says; other text is the first question of a conversation."""
        note(ROUNDS_KEYS)
        text = self._read(self._rounds_session, ROUNDS)
        if text is None or is_said(text, STOP):
            return None
        if text in ONE_ROUND:
            return "1"
        if text in MORE_ROUNDS:
            return "2"
        note("> 2: a conversation; this is its first question")
        self._session.history.append_string(text)
        self._first = text
        return "2"

    def __iter__(self) -> Iterator[str]:
        """As `Questions` says."""
        if self._first is not None:
            yield self._first
        while (text := self._read(self._session, f"\n{ASK}")) is not None:
            yield text

    def _read(self, session: PromptSession[str], ask: str) -> str | None:
        """A line; None to leave, by Ctrl-D or by Ctrl-C twice on an empty line. Ctrl-C clears any other."""
        is_warned = False
        while True:
            self._num_keys = 0
            try:
                return session.prompt(ask).strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                is_empty = not session.default_buffer.text
                if is_empty and is_warned and self._num_keys == 1:
                    return None
                is_warned = is_empty
                if is_warned:
                    note("> Ctrl-C again to leave")

    def _count_key(self, _: KeyProcessor) -> None:
        self._num_keys += 1


class LineHistory(FileHistory):
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
