"""The conversation of `glmtune chat`: ask, answer, forget, keep in a file.

Source of the printed lines: HarderThenHarder/transformers_tasks, LLM/chatglm_finetune; THUDM's cli_demo.py.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from glmtune.cli.questions import ASK, CLEAR, STOP, Questions, is_said, note
from glmtune.cli.transcript import Transcript
from glmtune.errors import DataError, OutputError
from glmtune.generate.text import begins_thought, find_thoughts
from glmtune.log import told_after

if TYPE_CHECKING:
    from glmtune.chat import Chat


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model that answers, with its name."""

    name: str
    chat: "Chat"
    at_work: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Context in which the chat's model is this speaker's: the base's sets the adapter aside."""


class Talk:
    """A conversation of the user with one speaker, or with the base and the tuned model."""

    def __init__(
        self, speakers: Sequence[Speaker], questions: Questions, transcript: Transcript | None
    ) -> None:
        """`transcript`: the file that keeps the conversation with the last of the `speakers`."""
        self._speakers = speakers
        self._questions = questions
        self._transcript = transcript
        self._is_watched = questions.is_terminal or sys.stdout.isatty()

    def greet(self, name: str) -> None:
        """Print the greeting, the keys, and the speakers if there are two."""
        note(
            f"欢迎使用 {name} 人工智能助手！输入内容即可进行对话。"
            "输入 clear 以清空对话历史，输入 stop 以终止对话。"
        )
        if self._questions.keys:
            note(self._questions.keys)
        if len(self._speakers) > 1:
            note(f"> answered by {' and by '.join(speaker.name for speaker in self._speakers)}")

    def hold(self, rounds: str | None) -> None:
        """Answer each question; `rounds`: "1" if each stands alone, "2" for a conversation, None to ask."""
        rounds = rounds or self._questions.ask_rounds()
        if rounds == "2":
            self._continue_transcript()
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

    def _continue_transcript(self) -> None:
        """Take up the transcript's last conversation, if its system message is this chat's."""
        transcript = self._transcript
        messages = transcript.messages if transcript else []
        if not (transcript and messages):
            return
        system = self._speakers[-1].chat.messages  # of a new chat: the system message, if there is one
        if [message for message in messages if message["role"] == "system"] != system:
            transcript.begin()
            note(f"> {transcript.path}: its last conversation has another system message: a new one begins")
            return
        for speaker in self._speakers:
            speaker.chat.messages = list(messages)
        questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
        note(f"> {transcript.path}: goes on after {len(questions)} round{'s' * (len(questions) != 1)}")
        if self._is_watched and questions:
            lines = []
            for message in messages[questions[-1] :]:
                name = ASK if message["role"] == "user" else f"<|{self._speakers[-1].name}|>: "
                lines.append(_dimmed(f"{name}{message['content']}"))
            note("\n".join(lines))

    def _clear(self) -> None:
        for speaker in self._speakers:
            speaker.chat.clear()
        if self._transcript:
            self._transcript.begin()

    def _ask(self, text: str) -> None:
        """Ask every speaker; if one of them gives no complete answer, all forget the question."""
        before = [(speaker.chat, len(speaker.chat.messages)) for speaker in self._speakers]
        is_complete = False
        try:
            _require_text(text)
            if self._is_watched:
                note("> begin generated, wait a moment...")
            start = time.perf_counter()
            for speaker in self._speakers:
                with speaker.at_work():
                    self._show_answer(speaker, text)
            if self._is_watched:
                note(f"> use time: {time.perf_counter() - start:.3f} s")
            is_complete = True
            if self._transcript:
                self._transcript.keep(self._speakers[-1].chat.messages)
        # a transcript that cannot be written ends no chat: there may be space at the next answer
        except (DataError, OutputError) as err:
            note(f"error: {err}\nhint: {err.hint}")
        except KeyboardInterrupt:
            if not self._questions.is_terminal:
                raise
            is_complete = False
            note("> interrupted, not remembered")
        if not is_complete:
            # every speaker's, also that of one who has answered: their conversations stay alike
            for chat, length in before:
                del chat.messages[length:]

    def _show_answer(self, speaker: Speaker, text: str) -> None:
        """Print the answer piece by piece as it is generated, a thought dimmed."""
        pieces = find_thoughts(speaker.chat.ask(text), is_open=begins_thought(speaker.chat.tokenizer))
        # the prefill: notes on the question, such as rounds left out, are printed before the answer begins
        first = next(pieces, ("", False))
        with told_after():
            click.echo(f"<|{speaker.name}|>: ", nl=False)
            try:
                for piece, is_thought in chain([first], pieces):
                    click.echo(_dimmed(piece) if is_thought else piece, nl=False)
            finally:
                click.echo()


def _dimmed(text: str) -> str:
    """Return the text dimmed, if stdout shows colours. Source: https://no-color.org."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if is_plain else click.style(text, dim=True)


def _require_text(text: str) -> None:
    """Raise `DataError` for typed bytes that are no text: these come in as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"character {err.start + 1} of the line, {text[err.start]!a}, is no text in {sys.stdin.encoding}",
            hint="the conversation goes on: type it again, in a terminal set to UTF-8",
        ) from None
