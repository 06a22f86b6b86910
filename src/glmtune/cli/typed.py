"""The questions of a chat, typed at a terminal.

prompt_toolkit edits the line: it knows the width of Chinese characters, keeps a history of typed lines, and
takes a pasted text of several lines as one question.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyProcessor
from prompt_toolkit.output import Output

from glmtune.cli.questions import ASK, STOP, is_said, note

ROUNDS = "您想体验【单轮对话】还是【多轮对话】？ 请输入（1 代表单轮，2 代表多轮）："
ONE_ROUND, MORE_ROUNDS = ("1", "单轮", "单轮对话"), ("", "2", "多轮", "多轮对话")
ROUNDS_KEYS = "1: each question on its own; 2 or Enter: a conversation"


class Typed:
    """Questions typed at a terminal."""

    is_terminal = True
    keys = (
        "Enter 发送 send, Alt-Enter 换行 break, ↑ 历史 back, "
        "Ctrl-C 停止 halt, clear 清空 forget, stop 退出 quit"
    )

    def __init__(self, output: Output | None = None) -> None:
        """`output`: the terminal that shows the line; None: prompt_toolkit's choice."""
        keys = KeyBindings()
        # terminals send Alt-Enter as Escape, Enter
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        self._session: PromptSession[str] = PromptSession(
            history=LineHistory(kept_lines()), key_bindings=keys, enable_suspend=True, output=output
        )
        self._rounds_session: PromptSession[str] = PromptSession(output=output)
        self._first: str | None = None
        self._num_keys = 0
        """Keys pressed since the line began, to tell Ctrl-C twice in a row from Ctrl-C after other keys."""
        for session in (self._session, self._rounds_session):
            session.app.key_processor.before_key_press += self._count_key

    def ask_rounds(self) -> str | None:
        """Ask for "1" or "2"; other text is taken as the first question of a conversation."""
        note(ROUNDS_KEYS)
        text = self._read(self._rounds_session, ROUNDS)
        if text is None or is_said(text, STOP):
            return None
        if text in ONE_ROUND:
            return "1"
        if text in MORE_ROUNDS:
            return "2"
        note("> 2: a conversation; this is its first question")
        # typed at another prompt, whose session has no history
        self._session.history.append_string(text)
        self._first = text
        return "2"

    def __iter__(self) -> Iterator[str]:
        """Yield each typed question."""
        if self._first is not None:
            yield self._first
        while (text := self._read(self._session, f"\n{ASK}")) is not None:
            yield text

    def _read(self, session: PromptSession[str], ask: str) -> str | None:
        """Return a line; None for Ctrl-D or Ctrl-C twice on an empty line. Ctrl-C clears a line with text."""
        is_warned = False
        while True:
            self._num_keys = 0
            try:
                return session.prompt(ask).strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                is_empty = not session.default_buffer.text
                # a line that was typed and deleted again since the warning makes it a first Ctrl-C
                if is_empty and is_warned and self._num_keys == 1:
                    return None
                is_warned = is_empty
                if is_warned:
                    note("> Ctrl-C again to leave")

    def _count_key(self, _: KeyProcessor) -> None:
        self._num_keys += 1


class LineHistory(FileHistory):
    """Typed lines in a file; no lines if it cannot be read, nothing added if it cannot be written."""

    def load_history_strings(self) -> Iterable[str]:
        """Return the lines, newest first."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Append a line to the file."""
        with suppress(OSError):
            path = Path(os.fsdecode(self.filename))
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            super().store_string(string)


def kept_lines() -> Path:
    """Return the path of the file of typed lines.

    Source: https://specifications.freedesktop.org/basedir-spec; Windows and macOS have folders of their own.
    """
    state = os.environ.get("XDG_STATE_HOME")
    if not state and sys.platform in ("win32", "darwin"):
        return Path(click.get_app_dir("glmtune", roaming=False), "chat_history")
    return Path(state or "~/.local/state", "glmtune", "chat_history").expanduser()
