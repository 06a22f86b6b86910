"""The chat formats of ChatGLM-6B and ChatGLM2: one text of numbered rounds."""

from collections.abc import Sequence
from typing import Any

from glmtune.errors import DataError
from glmtune.templates.messages import Message, Render, Segment, Template, control

# --- ChatGLM2: one text of numbered rounds ---
# Source: https://huggingface.co/THUDM/chatglm2-6b tokenization_chatglm.py (build_prompt); the answer is
# encoded on its own as https://github.com/THUDM/ChatGLM2-6B ptuning/main.py does.

_ROUND = "[Round {}]\n\n问：{}\n\n答："
_BETWEEN_ROUNDS = "\n\n"


def chatglm2_prompt(query: str, history: Sequence[tuple[str, str]] = ()) -> str:
    """Return ChatGLM2's prompt text: earlier rounds of (question, answer), then the question."""
    rounds = [_ROUND.format(n, question) + answer for n, (question, answer) in enumerate(history, 1)]
    return _BETWEEN_ROUNDS.join([*rounds, _ROUND.format(len(history) + 1, query)])


def rounds(
    messages: Sequence[Message], format_name: str = "ChatGLM2"
) -> list[tuple[Message, Message | None]]:
    """Return the messages as (question, answer) pairs; the last answer is None if it is still missing.

    Raises `DataError` for anything but user and assistant in turn.
    """
    for index, message in enumerate(messages):
        expected = ("user", "assistant")[index % 2]
        if message.tools:
            raise DataError(
                f"message {index + 1}: {format_name} has no tools", hint="use a ChatGLM3 or GLM-4 model"
            )
        if message.role == "system":
            hint = "put the text into data.source_prefix, which goes in front of the prompt"
            raise DataError(f"message {index + 1}: {format_name} has no system message", hint=hint)
        if message.role == "observation" or message.metadata or message.calls:
            raise DataError(
                f"message {index + 1}: {format_name} has no tool calls", hint="use a ChatGLM3 or GLM-4 model"
            )
        if message.role != expected:
            raise DataError(
                f"message {index + 1}: role {message.role!r} where {expected!r} was expected",
                hint=f"{format_name} takes questions and answers in turn, a question first",
            )
    answers: list[Message | None] = [*messages[1::2], None]
    return list(zip(messages[::2], answers, strict=False))


def chatglm2_render(messages: Sequence[Message], add_generation_prompt: bool, _name: str) -> list[Segment]:
    """Render messages for ChatGLM2."""
    pairs = rounds(messages)
    prefix = [control("[gMASK]"), control("sop")]
    if not pairs:
        return prefix
    history = [(question.content, answer.content) for question, answer in pairs[:-1] if answer]
    question, answer = pairs[-1]
    text = chatglm2_prompt(question.content, history)
    if answer is not None:
        return [*prefix, Segment(text + answer.content)]
    return [*prefix, Segment(text if add_generation_prompt else text.removesuffix("\n\n答："))]


def round_format(
    render_rounds: Render,
    end: str,
    **facts: Any,  # Any: `Template`'s other fields, of several types
) -> Template:
    """Return a format of rounds; each learned answer is a training example that ends with `end`."""

    def examples(messages: Sequence[Message], name: str) -> list[list[Segment]]:
        # raises for a turn the format cannot express, also behind the last learned answer
        render_rounds(messages, False, name)
        return [
            [
                *render_rounds(messages[:index], True, name),
                Segment(message.content, is_target=True),
                control(end, is_target=True),
            ]
            for index, message in enumerate(messages)
            if message.role == "assistant" and message.loss
        ]

    return Template(
        render=render_rounds,
        examples=examples,
        stop_tokens=(end,),
        end_of_text=end,
        prefixes_prompt=True,
        remembers_tidied=True,
        splits_answers=True,
        **facts,
    )


# --- ChatGLM-6B: a bare question, or numbered rounds; what asks for the answer stands behind the text ---
# Source: https://huggingface.co/THUDM/chatglm-6b modeling_chatglm.py (chat), tokenization_chatglm.py
# (build_inputs_with_special_tokens). Earlier text is two-way context: a loss there would see the answer.

_V1_ROUND = "[Round {}]\n问：{}\n答："


def chatglm_prompt(query: str, history: Sequence[tuple[str, str]] = (), *, is_numbered: bool = False) -> str:
    """Return ChatGLM-6B's prompt text; without earlier rounds it is the question alone.

    `is_numbered`: write `[Round 0]` even then, as ptuning/main.py does for rows with a history column.
    """
    if not (history or is_numbered):
        return query
    earlier = [_V1_ROUND.format(n, question) + answer + "\n" for n, (question, answer) in enumerate(history)]
    return "".join([*earlier, _V1_ROUND.format(len(history), query)])


def chatglm_render(messages: Sequence[Message], add_generation_prompt: bool, _name: str) -> list[Segment]:
    """Render messages for ChatGLM-6B."""
    pairs = rounds(messages, "ChatGLM-6B")
    asks = [control("[gMASK]"), control("<sop>")]
    if not pairs:
        return asks if add_generation_prompt else []
    history = [(question.content, answer.content) for question, answer in pairs[:-1] if answer]
    question, answer = pairs[-1]
    text = chatglm_prompt(question.content, history)
    if answer is not None:
        return [Segment(text), *asks, Segment(answer.content)]
    if add_generation_prompt:
        return [Segment(text), *asks]
    return [Segment(text.removesuffix("\n答：") if history else text)]


CHATGLM_CONTROL_TOKENS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<unused_0>",
    "<sop>",
    "<eop>",
    "<ENC>",
    "<dBLOCK>",
)
CHATGLM2_CONTROL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
