"""The conversation of `glmtune chat`: what is asked, answered, forgotten and kept.

Source of the lines: HarderThenHarder/transformers_tasks, LLM/chatglm_finetune; THUDM's cli_demo.py.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from glmtune.cli.questions import ASK, CLEAR, STOP, Questions, is_said, note
from glmtune.cli.transcript import Transcript
from glmtune.errors import DataError, OutputError
from glmtune.log import told_after
from glmtune.templates import Message
from glmtune.templates.messages import THOUGHT_BEGIN, THOUGHT_END

if TYPE_CHECKING:
    from glmtune.chat import Chat
    from glmtune.tokenizers.protocol import Tokenizer


@dataclass(frozen=True, slots=True)
class Speaker:
    """One who answers."""

    name: str
    chat: "Chat"
    at_work: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Inside, the chat's model is this speaker's."""


class Talk:
    """Questions, and the answers of one speaker, or of the base and the tuned model."""

    def __init__(self, speakers: Sequence[Speaker], questions: Questions, record: Transcript | None) -> None:
        """`speakers`: the conversation of the last is the one that is kept."""
        self._speakers = speakers
        self._questions = questions
        self._record = record
        self._is_watched = questions.is_terminal or sys.stdout.isatty()

    def greet(self, name: str) -> None:
        """Say who is there and what can be typed."""
        note(
            f"欢迎使用 {name} 人工智能助手！输入内容即可进行对话。"
            "输入 clear 以清空对话历史，输入 stop 以终止对话。"
        )
        if self._questions.keys:
            note(self._questions.keys)
        if len(self._speakers) > 1:
            note(f"> answered by {' and by '.join(speaker.name for speaker in self._speakers)}")

    def hold(self, rounds: str | None) -> None:
        """Answer each question; `rounds`: "1" where each stands alone, asked for if None."""
        rounds = rounds or self._questions.ask_rounds()
        if rounds == "2":
            self._go_on()
        for text in self._questions if rounds else ():
            if is_said(text, STOP):
                return
            if is_said(text, CLEAR):
                self._clear()
                note("> history cleared")
            elif text:
                if rounds == "1":
                    self._clear()
                self._ask(text)

    def _go_on(self) -> None:
        """Take up the conversation that is on record, if it began as this one does."""
        kept = self._record.messages if self._record else []
        if not (self._record and kept):
            return
        begun = self._speakers[-1].chat.messages
        if [message for message in kept if message["role"] == "system"] != begun:
            self._record.begin()
            note(f"> {self._record.path}: its last conversation has another system message: a new one begins")
            return
        for speaker in self._speakers:
            speaker.chat.messages = list(kept)
        rounds = sum(message["role"] == "user" for message in kept)
        note(f"> {self._record.path}: goes on after {rounds} round{'s' * (rounds != 1)}")
        if self._is_watched and rounds:
            note("\n".join(map(_dimmed, self._last_round(kept))))

    def _last_round(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """What was last asked and answered, as it is shown."""
        start = max(i for i, message in enumerate(messages) if message["role"] == "user")
        for message in messages[start:]:
            name = ASK if message["role"] == "user" else f"<|{self._speakers[-1].name}|>: "
            yield f"{name}{message['content']}"

    def _clear(self) -> None:
        for speaker in self._speakers:
            speaker.chat.clear()
        if self._record:
            self._record.begin()

    def _ask(self, text: str) -> None:
        """One question to all; where one gives no whole answer, nobody remembers it."""
        before = [(speaker.chat, len(speaker.chat.messages)) for speaker in self._speakers]
        is_whole = False
        try:
            _check_typed(text)
            self._answer(text)
            is_whole = True
            if self._record:
                self._record.keep(self._speakers[-1].chat.messages)
        except (DataError, OutputError) as err:  # a record that cannot be written may be at the next answer
            note(f"error: {err}\nhint: {err.hint}")
        except KeyboardInterrupt:
            if not self._questions.is_terminal:
                raise
            is_whole = False
            note("> interrupted, not remembered")
        if not is_whole:
            for chat, length in before:
                del chat.messages[length:]

    def _answer(self, text: str) -> None:
        if self._is_watched:
            note("> begin generated, wait a moment...")
        start = time.perf_counter()
        for speaker in self._speakers:
            with speaker.at_work():
                self._show(speaker, text)
        if self._is_watched:
            note(f"> use time: {time.perf_counter() - start:.3f} s")

    def _show(self, speaker: Speaker, text: str) -> None:
        pieces = find_thoughts(speaker.chat.ask(text), is_open=begins_thought(speaker.chat.tokenizer))
        first = next(pieces, ("", False))  # so that all that is told of the question comes before its answer
        with told_after():
            click.echo(f"<|{speaker.name}|>: ", nl=False)
            try:
                for piece, is_thought in chain([first], pieces):
                    click.echo(_dimmed(piece) if is_thought else piece, nl=False)
            finally:
                click.echo()


def begins_thought(tokenizer: "Tokenizer") -> bool:
    """Whether a prompt ends inside a thought, as GLM-Z1's does."""
    return tokenizer.segments([Message("user", "")])[-1].text.endswith(THOUGHT_BEGIN)


def find_thoughts(pieces: Iterable[str], *, is_open: bool) -> Iterator[tuple[str, bool]]:
    """The pieces of an answer, and whether each is of the thought in front of it.

    `is_open`: the thought was begun by the prompt.
    """
    written = ""
    for piece in pieces:
        before, written = len(written), written + piece
        is_thought = is_open or written.startswith(THOUGHT_BEGIN)
        end = written.find(THOUGHT_END) + len(THOUGHT_END) if THOUGHT_END in written else len(written)
        if not is_thought or end <= before:
            yield piece, False
            continue
        yield written[before:end], True
        if end < len(written):
            yield written[end:], False


def _dimmed(text: str) -> str:
    """Dim where stdout shows colours. Source: https://no-color.org."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if is_plain else click.style(text, dim=True)


def _check_typed(text: str) -> None:
    """Refuse what came in as other bytes than text. Raises `DataError`."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"character {err.start + 1} of the line, {text[err.start]!a}, is no text in {sys.stdin.encoding}",
            hint="the conversation goes on: type it again, in a terminal set to UTF-8",
        ) from None
