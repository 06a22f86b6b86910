"""Conversations -> ids, and answers' ids -> text, for all that trains a model and all that talks to it.

A conversation begins as its model was taught: `Taught.begin` puts the system text in, and then every call
here the source prefix where the format has it. Ids that are asked with are those that training shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from glmtune.families import require_template
from glmtune.templates import Message, Taught, message_segments, training_examples, visible_text
from glmtune.templates.latest import leave_out_oldest
from glmtune.tokenizers.protocol import Tokenizer


def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any] | Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    taught: Taught | None = None,
    **options: Any,
) -> list[int]:
    """The ids that chat sends for these messages; content is plain text and never a control token.

    `messages` are in OpenAI's form: dicts with `role`, `content` and what the turn has besides of
    `reasoning_content`, `tool_calls`, `tool_call_id`; the official code's `metadata` and `observation` are
    read too. `tools` are described as OpenAI does, `{"type": "function", "function": {...}}`. With
    `taught=tokenizer.taught` they begin as in training: with the system text, unless they have one, and the
    source prefix of the run or adapter that the tokenizer was loaded by. Options: `enable_thinking`, for the
    formats that let one choose; `assistant_name`, for how the tools' introduction calls the assistant;
    `source_prefix`, a text in front of the first question. Raises DataError for messages, ConfigError for
    options that the format does not have, or of another kind.
    """
    template = require_template(tokenizer.template, str(tokenizer.vocab_file))
    segments = message_segments(
        template,
        messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        taught=taught,
        **{"assistant_name": tokenizer.assistant_name, **options},
    )
    return tokenizer.encode_segments(segments)


def encode_question(
    tokenizer: Tokenizer, messages: Sequence[Message], *, source_prefix: str = ""
) -> list[int]:
    """The ids that ask for the answer that follows these messages, as `encode_messages` gives them.

    Raises DataError for a conversation that the format cannot express.
    """
    return tokenizer.encode_segments(tokenizer.segments(messages, source_prefix=source_prefix))


def encode_learned(
    tokenizer: Tokenizer, messages: Sequence[Message], *, source_prefix: str = ""
) -> list[list[tuple[list[int], bool]]]:
    """The training examples of a conversation, part by part: a part's ids, and whether they are learned.

    Up to a learned answer they are those of `encode_question`. Raises DataError as that does.
    """
    examples = training_examples(
        require_template(tokenizer.template, str(tokenizer.vocab_file)),
        messages,
        assistant_name=tokenizer.assistant_name,
        source_prefix=source_prefix,
    )
    return [
        [(tokenizer.encode_segments([segment]), segment.is_target) for segment in segments]
        for segments in examples
    ]


def encode_latest(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    context: int | None,
    max_new_tokens: int,
    num_left_out: int = 0,
    **options: Any,
) -> tuple[list[int], int]:
    """As `encode_messages`, without the oldest rounds where all is too long; how many were left out.

    What is too long, and what stays: `templates.latest.leave_out_oldest`.
    """
    return leave_out_oldest(
        messages,
        lambda rest: encode_messages(tokenizer, rest, **options),
        context=context,
        max_new_tokens=max_new_tokens,
        num_left_out=num_left_out,
    )


def answer_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """What an answer says: without the line break (ChatGLM3, GLM-4) or the thought in front of it."""
    return visible_text(tokenizer.chat_format, str(tokenizer.decode(list(ids))).lstrip())
