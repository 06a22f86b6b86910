"""Encode conversations as token ids and decode answers: the one path of training, evaluation, chat and API.

A conversation begins as in training: `Taught.begin` adds the system text, and each function here adds the
source prefix, in the chat formats that have one. A prompt has the very ids that the model was trained on.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmtune.families import require_template
from glmtune.templates import Message, Segment, Taught, message_segments, training_examples, visible_text
from glmtune.templates.latest import leave_out_oldest
from glmtune.tokenizers.protocol import Tokenizer


def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any] | Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    taught: Taught | None = None,
    **options: object,
) -> list[int]:
    """Return the ids of a conversation in the tokenizer's chat format; content never becomes a control token.

    `messages` are in OpenAI's form: dicts with `role` and `content`, and some of `reasoning_content`,
    `tool_calls` and `tool_call_id`; the official code's `metadata` and `observation` are read too. `tools`
    are described as for OpenAI, `{"type": "function", "function": {...}}`. With `taught=tokenizer.taught`
    the conversation begins as in training: with the system text, unless it has one, and the source prefix of
    the run or adapter that the tokenizer was loaded with. Options: `enable_thinking`, for formats that let
    one choose; `assistant_name`, the assistant's name in the introduction of the tools; `source_prefix`, a
    text in front of the first question. Raises DataError for messages that the format cannot express,
    ConfigError for options that it does not have and for values of the wrong type.
    """
    template = require_template(tokenizer.template, str(tokenizer.vocab_file))
    # segments keep text and control tokens apart: `<|user|>` typed by a user stays the characters it is
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
    """Return the prompt for the answer that follows these messages, the same ids as from `encode_messages`.

    Raises DataError for a conversation that the format cannot express.
    """
    return tokenizer.encode_segments(tokenizer.segments(messages, source_prefix=source_prefix))


def learned_segments(
    tokenizer: Tokenizer, messages: Sequence[Message], *, source_prefix: str = ""
) -> list[list[Segment]]:
    """Return the segments of each training example of a conversation; those that are learned are targets.

    Up to a learned answer their ids are those of `encode_question`, and so are the errors.
    """
    return training_examples(
        require_template(tokenizer.template, str(tokenizer.vocab_file)),
        messages,
        assistant_name=tokenizer.assistant_name,
        source_prefix=source_prefix,
    )


def encode_together(
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Segment]],
    known: dict[str, NDArray[np.int32]],
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
    """Encode rendered conversations, in a fraction of the time that `encode_segments` of each takes.

    Return all ids one after the other, a mask of those that are targets, and the conversations' bounds in
    both: 0, ..., number of ids. `known`: ids of texts; those of further ones are added. No text may hold half
    a character.
    """
    parts = list(chain.from_iterable(conversations))
    # each text once, however often it occurs: role headers and system texts are the same in every row
    unique = dict.fromkeys(parts)
    new = (segment.text for segment in unique if not segment.is_control and segment.text not in known)
    texts = list(dict.fromkeys(new))
    known.update(zip(texts, tokenizer.encode_texts(texts), strict=True))
    pieces_of = {
        segment: np.array([tokenizer.control_id(segment.text)], np.int32)
        if segment.is_control
        else known[segment.text]
        for segment in unique
    }
    pieces = list(map(pieces_of.__getitem__, parts))
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    targets = np.fromiter(map(attrgetter("is_target"), parts), bool, len(parts))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([np.empty(0, np.int32), *pieces])  # at least one, if there are no conversations
    return ids, np.repeat(targets, lengths), ends[np.cumsum([0, *map(len, conversations)])]


def encode_latest(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    context: int | None,
    max_new_tokens: int,
    num_left_out: int = 0,
    **options: Any,  # Any: passed on to the named parameters of encode_messages too
) -> tuple[list[int], int]:
    """Return the ids as of `encode_messages`, and the number of oldest rounds left out to fit the context.

    `templates.latest.leave_out_oldest` has the rule of what is too long, and of what stays.
    """
    return leave_out_oldest(
        messages,
        lambda rest: encode_messages(tokenizer, rest, **options),
        context=context,
        max_new_tokens=max_new_tokens,
        num_left_out=num_left_out,
    )


def answer_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of an answer, without the line break (ChatGLM3, GLM-4) or thought in front of it."""
    return visible_text(tokenizer.chat_format, str(tokenizer.decode(list(ids))).lstrip())
