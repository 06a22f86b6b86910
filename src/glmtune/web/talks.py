"""A conversation on the page: its rounds, what the model is sent of it, and the bubbles that show it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glmtune.templates import Taught
from glmtune.templates.messages import THOUGHT_BEGIN, THOUGHT_END
from glmtune.web.words import Words

MARKS = re.compile(r"[\\`*_{}\[\]()#+.!|<>~$-]")
"""Characters that mean something in Markdown. Source: https://spec.commonmark.org/0.31.2/#backslash-escapes"""
ESCAPED = re.compile(rf"\\({MARKS.pattern})")


@dataclass(slots=True)
class ShownAnswer:
    """An answer as far as it has come."""

    thought: str = ""
    text: str = ""
    remembered: str = ""
    """The answer as later questions are asked with it."""
    note: str = ""
    """A remark below it, such as that it was stopped."""
    is_done: bool = False


@dataclass(slots=True)
class Exchange:
    """A question and the answers of those who were asked: the tuned model first, then its base."""

    question: str
    answers: list[ShownAnswer] = field(default_factory=list)
    state: Literal["asked", "answering", "stopping", "over"] = "asked"
    """`over`: answered, stopped or failed; nothing more is written into it."""


def messages_for(
    exchanges: Sequence[Exchange], side: int, *, system: str, taught: Taught, is_multi_turn: bool
) -> list[dict[str, Any]]:
    """Return the messages, in OpenAI's form, that the model on a side is sent for the last question.

    `system` takes the place of the system text that the model was tuned with, if it is not empty.
    """
    begun = Taught(system or taught.system).begin([])
    messages: list[dict[str, Any]] = [{"role": each.role, "content": each.content} for each in begun]
    for exchange in exchanges[:-1] if is_multi_turn else ():
        if side < len(exchange.answers) and exchange.answers[side].remembered:
            messages += [
                {"role": "user", "content": exchange.question},
                {"role": "assistant", "content": exchange.answers[side].remembered},
            ]
    return [*messages, {"role": "user", "content": exchanges[-1].question}]


def as_shown(question: str) -> str:
    """Return a question for Gradio's chatbot, which reads Markdown: every character is shown as it was typed.

    The attributes of ADGEN's rows stand between asterisks, for example.
    """
    return MARKS.sub(r"\\\g<0>", question)


def as_typed(shown: str) -> str:
    """Return the question that `as_shown` made this text of."""
    return ESCAPED.sub(r"\1", shown)


def bubbles(exchanges: Sequence[Exchange], side: int, words: Words) -> list[dict[str, Any]]:
    """Return the messages of Gradio's chatbot for a side; a thought is folded above its answer."""
    return [bubble for exchange in exchanges for bubble in _bubbles_of(exchange, side, words)]


def find_exchange(exchanges: Sequence[Exchange], side: int, index: int, words: Words) -> int:
    """Return the number of the exchange that the bubble of an index belongs to."""
    for number, exchange in enumerate(exchanges):
        index -= len(_bubbles_of(exchange, side, words))
        if index < 0:
            return number
    return len(exchanges) - 1


def _bubbles_of(exchange: Exchange, side: int, words: Words) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = [{"role": "user", "content": as_shown(exchange.question)}]
    if side >= len(exchange.answers):
        return shown
    answer = exchange.answers[side]
    if thought := answer.thought.removeprefix(THOUGHT_BEGIN).removesuffix(THOUGHT_END).strip():
        folded = {"title": words("thought"), "status": "done" if answer.text or answer.is_done else "pending"}
        shown.append({"role": "assistant", "content": thought, "metadata": folded})
    if answer.text or answer.is_done:
        note = f"\n\n*{answer.note}*" if answer.note else ""
        shown.append({"role": "assistant", "content": (answer.text or words("no_answer")) + note})
    return shown
