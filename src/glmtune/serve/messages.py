"""`/v1/messages`: questions from requests, replies as Anthropic writes them, whole or streamed.

Source: https://docs.anthropic.com/en/api/messages, .../messages-streaming, .../errors.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from secrets import token_hex
from typing import Any

from glmtune.serve.blocks import BlockEvents, Event, merged
from glmtune.serve.errors import ApiError
from glmtune.serve.messages_schema import (
    AssistantMessage,
    CountRequest,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    UserMessage,
)
from glmtune.serve.service import GrowingReply, Question
from glmtune.templates.answer_stream import (
    AnswerPiece,
    ArgumentsPiece,
    CallPiece,
    TextPiece,
    ThoughtPiece,
)

REASONS: Mapping[str, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
"""The reasons of an answer's end, by our names."""


def messages_question(request: CountRequest) -> Question:
    """Return the question of a request, its messages in OpenAI's form.

    Raises `ApiError` if the last one is an answer: none can be begun here.
    """
    if request.messages[-1].role == "assistant":
        raise ApiError(
            400, "messages: the last one is an answer, and none can be begun here", param="messages"
        )
    choice, thinking = request.tool_choice, request.thinking
    kind = choice.type if choice else "auto"
    if choice and (kind == "tool") != (choice.name is not None):
        raise ApiError(
            400, "tool_choice.name: belongs to type tool, and to no other", param="tool_choice.name"
        )
    system = [{"role": "system", "content": _text(request.system)}] if request.system else []
    # "adaptive" leaves it to the model, and so does a format that is not asked
    is_chosen = thinking is not None and thinking.type != "adaptive"
    drawing: dict[str, Any] = {}
    if isinstance(request, MessagesRequest):  # the other one only counts tokens
        names = ("temperature", "top_p", "top_k")
        drawing = {
            "sampling": {name: value for name in names if (value := getattr(request, name)) is not None},
            "max_new_tokens": request.max_tokens,
            "stops": request.stop_sequences or (),
            "streams_calls": bool(request.stream),
        }
    return Question(
        model=request.model,
        messages=[*system, *(turn for message in request.messages for turn in _turns(message))],
        tools=[
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description or "",
                    "parameters": tool.input_schema,
                },
            }
            for tool in (request.tools or () if kind != "none" else ())
        ],
        is_one_call=choice is not None and choice.disable_parallel_tool_use,
        must_call=kind in ("any", "tool"),
        called=choice.name if choice else None,
        options={"enable_thinking": thinking.type == "enabled"} if thinking and is_chosen else {},
        **drawing,
    )


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _turns(message: UserMessage | AssistantMessage) -> Iterator[dict[str, Any]]:
    """Yield the turns of a message: results of tools and text stand in one message there."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
    elif isinstance(message, AssistantMessage):
        yield _answer(message.content)
    else:
        texts: list[str] = []
        for block in message.content:
            if isinstance(block, TextBlock):
                texts.append(block.text)
                continue
            yield from [{"role": "user", "content": "\n".join(texts)}] if texts else []
            texts = []
            # in the order of the blocks: text in front of a result was said before it
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content)}
        yield from [{"role": "user", "content": "\n".join(texts)}] if texts else []


def _answer(blocks: list[TextBlock | ThinkingBlock | ToolUseBlock]) -> dict[str, Any]:
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    answer: dict[str, Any] = {"role": "assistant", "content": text or (None if calls or thoughts else "")}
    answer |= {"reasoning_content": "\n".join(thoughts)} if thoughts else {}
    return answer | ({"tool_calls": calls} if calls else {})


def messages_error(error: ApiError) -> dict[str, Any]:
    """Return an error as Anthropic writes it."""
    kind = "api_error" if error.status >= 500 else error.kind
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def _head(reply: GrowingReply) -> dict[str, Any]:
    return {
        "id": f"msg_{token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": reply.model.name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(reply),
    }


def _usage(reply: GrowingReply) -> dict[str, int]:
    # Anthropic counts what was kept from before apart from the tokens that are read anew
    return {
        "input_tokens": reply.num_prompt_tokens - reply.num_cached,
        "cache_read_input_tokens": reply.num_cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": reply.num_tokens,
    }


def _end(reason: str | None, stop: str | None) -> dict[str, Any]:
    return {
        "stop_reason": "stop_sequence" if stop is not None else REASONS[reason or "stop"],
        "stop_sequence": stop,
    }


def _block(piece: AnswerPiece) -> dict[str, Any]:
    if isinstance(piece, ThoughtPiece):
        # Anthropic signs thoughts, and its clients require the field; nothing is signed here
        return {"type": "thinking", "thinking": piece.text, "signature": ""}
    if isinstance(piece, TextPiece):
        return {"type": "text", "text": piece.text}
    assert isinstance(piece, CallPiece)  # its arguments' pieces are joined to it
    # an object here, where OpenAI has its JSON as a text
    arguments = json.loads(piece.arguments)
    return {"type": "tool_use", "id": piece.id, "name": piece.name, "input": arguments}


async def message_reply(reply: GrowingReply) -> dict[str, Any]:
    """Return a whole reply."""
    pieces: list[AnswerPiece] = []
    end: dict[str, Any] = {}
    async for written in reply:
        pieces += written.pieces
        end = _end(written.reason, written.stop)
    return {**_head(reply), "content": list(map(_block, merged(pieces))), **end}


class _MessageEvents(BlockEvents):
    """Writes the events of a reply's blocks."""

    def begin(self, index: int, piece: AnswerPiece) -> list[Event]:
        empty = {"thinking": "", "text": "", "input": {}}
        if isinstance(piece, CallPiece):  # of a call that goes on, its arguments are no JSON yet
            piece = replace(piece, arguments="{}")
        block = {key: empty.get(key, value) for key, value in _block(piece).items()}
        # the kind of a block stands under a key that is also the name of its content
        return [{"type": "content_block_start", "index": index, "content_block": block}]

    def go_on(self, index: int, piece: AnswerPiece) -> list[Event]:
        if isinstance(piece, ThoughtPiece):
            delta = {"type": "thinking_delta", "thinking": piece.text}
        elif isinstance(piece, TextPiece):
            delta = {"type": "text_delta", "text": piece.text}
        else:
            text = piece.text if isinstance(piece, ArgumentsPiece) else piece.arguments
            delta = {"type": "input_json_delta", "partial_json": text}
        return [{"type": "content_block_delta", "index": index, "delta": delta}]

    def end(self, index: int, _block: AnswerPiece) -> list[Event]:
        return [{"type": "content_block_stop", "index": index}]


async def message_events(reply: GrowingReply) -> AsyncIterator[Event]:
    """Yield the events of a streamed reply."""
    yield {"type": "message_start", "message": _head(reply)}
    blocks = _MessageEvents()
    end: dict[str, Any] = {}
    async for written in reply:
        for event in blocks.add(written.pieces):
            yield event
        end = _end(written.reason, written.stop)
    for event in blocks.finish():
        yield event
    yield {"type": "message_delta", "delta": end, "usage": _usage(reply)}
    yield {"type": "message_stop"}
