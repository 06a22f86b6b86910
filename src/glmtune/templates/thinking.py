"""The chat formats of GLM-Z1, GLM-4.5 and 4.6: models that think aloud before they answer.

An answer is learned with its thought, but a prompt holds earlier answers without theirs. So each learned
answer is a training example of its own.
"""

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from glmtune.errors import DataError
from glmtune.templates.messages import (
    THOUGHT_BEGIN,
    THOUGHT_END,
    Call,
    Message,
    Segment,
    Template,
    control,
    is_learned,
    parse_call_arguments,
)
from glmtune.templates.turns import GLM4_CONTROL_TOKENS, Turn, TurnsFunction, turns_0414


def thinking_format(
    turns_of: TurnsFunction,
    learned_turn: Callable[[Message], Turn],
    *,
    ask: Sequence[str | Segment],
    prefix: Sequence[str],
    end: str,
    learns_thoughts: bool = True,
    **facts: Any,  # Any: other fields of `Template`, of several types
) -> Template:
    """Return a format of role tokens; `ask`: the texts behind the assistant's role token in a prompt."""
    start = [control(text) for text in prefix]

    def render_turns(messages: Sequence[Message], add_generation_prompt: bool, name: str) -> list[Segment]:
        turns = turns_of(messages, name)
        if add_generation_prompt:
            turns.append(Turn("assistant", tuple(ask)))
        return [*start, *(segment for turn in turns for segment in turn.segments(is_prompt=True))]

    def examples(messages: Sequence[Message], name: str) -> list[list[Segment]]:
        # raises for a turn the format cannot express, also behind the last learned answer
        turns_of(messages, name)
        return [
            [
                *render_turns(messages[:index], False, name),
                *learned_turn(message).segments(),
                control("<|observation|>" if message.is_call else end, is_target=True),
            ]
            for index, message in enumerate(messages)
            if is_learned(message)
        ]

    return Template(
        render=render_turns,
        examples=examples,
        splits_answers=True,
        thought_end=THOUGHT_END,
        learns_thoughts=learns_thoughts,
        **facts,
    )


# --- GLM-Z1: the thought is plain text, begun by the prompt ---
# Source: https://huggingface.co/zai-org/GLM-Z1-9B-0414 chat_template.jinja.

GLMZ1_ASK = "\n<think>"
_GLMZ1_INTRODUCTION = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)


def glmz1_turns(messages: Sequence[Message], _name: str) -> list[Turn]:
    """GLM-Z1's turns, earlier answers without their thoughts."""
    return turns_0414(messages, _GLMZ1_INTRODUCTION, _without_thought)


def _without_thought(content: str) -> str:
    return content.rpartition(THOUGHT_END)[2].strip()


def glmz1_learned(message: Message) -> Turn:
    """Return an answer as GLM-Z1 learns it: with an empty thought if it has none.

    A thought inside the text stays as it is.

    Source of the empty one, and of the line breaks around a thought: hiyouga/LLaMA-Factory
    src/llamafactory/data/template.py (ReasoningTemplate).
    """
    if message.is_call:
        raise DataError(
            "GLM-Z1: a tool call cannot be learned: the prompt already begins a thought",
            hint='take the call out of what is learned: "loss": false',
        )
    content = message.content
    if message.thought is not None or THOUGHT_END not in content:
        thought = (message.thought or "").strip()
        content = f"\n{thought}\n</think>\n\n{content.strip()}"
    return Turn("assistant", (GLMZ1_ASK, content.removeprefix(THOUGHT_BEGIN)), True, num_asked=1)


# --- GLM-4.5 and 4.6: thoughts, tool calls and their results stand between control tokens of their own ---
# Source: https://huggingface.co/zai-org/GLM-4.6 chat_template.jinja, in ggml-org/llama.cpp
# models/templates/GLM-4.6.jinja. Its enable_thinking=False is the format glm45_nothink.


def glm45_turns(messages: Sequence[Message], _name: str, end_of_question: str = "") -> list[Turn]:
    """GLM-4.5's turns: only answers behind the last question keep their thought.

    Tool results in a row share one role token. `end_of_question`: a control token behind each question.
    """
    turns = []
    if tools := [tool for message in messages for tool in message.tools or ()]:
        listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
        turns.append(Turn("system", (_GLM45_TOOLS_BEGIN + listed + _GLM45_TOOLS_END, *_GLM45_CALL_FORM)))
    last_question = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    texts: tuple[str | Segment, ...]
    for role, group in groupby(enumerate(messages), key=lambda numbered: numbered[1].role):
        if role == "observation":
            begin, end = control("<tool_response>"), control("</tool_response>")
            texts = tuple(
                text for _, message in group for text in ("\n", begin, f"\n{message.content}\n", end)
            )
            turns.append(Turn(role, texts))
            continue
        for index, message in group:
            if role == "assistant":
                texts = _glm45_answer(message, keeps_thought=index > last_question)
            elif role == "user" and end_of_question:
                question = message.content.removesuffix(end_of_question)  # users may have typed it
                texts = (f"\n{question}", control(end_of_question))
            elif role == "user" or message.content or message.tools is None:
                texts = (f"\n{message.content}",)
            else:  # a system turn with nothing but tools: they are in the first turn
                continue
            turns.append(Turn(role, texts))
    return turns


def _glm45_answer(message: Message, *, keeps_thought: bool) -> tuple[str | Segment, ...]:
    """Return thought, text and calls in the order in which they stand in one turn."""
    thought, content = (part.strip() for part in message.split_thought())
    calls = message.calls
    if message.metadata:  # the content is the call of this tool, as ChatGLM3 and GLM-4 have it
        arguments = parse_call_arguments(message.content or "{}")
        if arguments is None:
            raise DataError(
                f"a call of {message.metadata!r}: its content is no JSON object of GLM-4.5's named arguments",
                hint='write the arguments as {"name": value}',
            )
        calls, content = (Call(message.metadata, arguments),), ""
    text = f"\n{content}" if content else ""
    texts: list[str | Segment] = [*GLM45_NO_THOUGHT]
    if keeps_thought and thought:
        texts = ["\n", control(THOUGHT_BEGIN), thought, control(THOUGHT_END)]
    for call in calls:
        texts += [f"{text}\n", control("<tool_call>"), f"{call.name}\n"]
        for key, value in call.arguments.items():
            written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for tag, inner in (("arg_key", key), ("arg_value", written)):
                texts += [control(f"<{tag}>"), *([inner] if inner else []), control(f"</{tag}>"), "\n"]
        texts.append(control("</tool_call>"))
        text = ""  # the text stands in front of the first call only
    return (*texts, text) if text else tuple(texts)


def glm45_learned(message: Message) -> Turn:
    """Return an answer as it is learned, with its thought."""
    return Turn("assistant", _glm45_answer(message, keeps_thought=True), True)


def glm45_learned_unthinking(message: Message) -> Turn:
    """Return an answer as it is learned behind the empty thought of the prompt, without its own thought."""
    texts = _glm45_answer(message, keeps_thought=False)
    return Turn("assistant", texts, True, num_asked=len(GLM45_NO_THOUGHT))


GLM45_NO_THOUGHT: tuple[str | Segment, ...] = ("\n", control("<think>"), control("</think>"))
_GLM45_TOOLS_BEGIN = (
    "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_GLM45_TOOLS_END = (
    "</tools>\n\nFor each function call, output the function name and arguments within the following "
    "XML format:\n"
)
_GLM45_CALL_FORM: tuple[str | Segment, ...] = (
    *(control("<tool_call>"), "{function-name}\n"),
    *(control("<arg_key>"), "{arg-key-1}", control("</arg_key>"), "\n"),
    *(control("<arg_value>"), "{arg-value-1}", control("</arg_value>"), "\n"),
    *(control("<arg_key>"), "{arg-key-2}", control("</arg_key>"), "\n"),
    *(control("<arg_value>"), "{arg-value-2}", control("</arg_value>"), "\n...\n"),
    control("</tool_call>"),
)

GLM45_CONTROL_TOKENS = (
    *GLM4_CONTROL_TOKENS,
    *("<|begin_of_audio|>", "<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>"),
    *("<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>", "<think>", "</think>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink"),
)
