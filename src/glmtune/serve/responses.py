"""`/v1/responses`: questions from requests, replies as OpenAI's responses are written, whole or streamed.

Source: https://platform.openai.com/docs/api-reference/responses/object, .../responses-streaming.
"""

import json
import time
from collections.abc import AsyncIterator, Sequence
from secrets import token_hex
from typing import Any

from glmtune.serve.answer import Reason
from glmtune.serve.blocks import BlockEvents, Event, merged
from glmtune.serve.errors import ApiError
from glmtune.serve.responses_schema import (
    CallItem,
    ContentPart,
    ReasoningItem,
    ReasoningPart,
    ResponsesChoice,
    ResponsesRequest,
    ResultItem,
    TurnItem,
)
from glmtune.serve.service import GrowingReply, Question
from glmtune.templates.answer_stream import (
    AnswerPiece,
    ArgumentsPiece,
    CallPiece,
    TextPiece,
    ThoughtPiece,
)


def response_question(request: ResponsesRequest) -> Question:
    """Return the question of a request, its items as messages of OpenAI's older form.

    Raises `ApiError` for fields that contradict each other.
    """
    has_thought = request.reasoning is None or request.reasoning.effort != "none"
    choice = request.tool_choice
    tools = () if choice == "none" else request.tools or ()
    form = request.text.format if request.text else None
    if form is not None and form.type != "text" and tools:
        raise ApiError(400, "text.format: an answer in a form cannot call tools here", param="text.format")
    names = ("temperature", "top_p")
    return Question(
        model=request.model,
        messages=_messages(request),
        tools=[
            {
                "type": "function",
                "function": tool.model_dump(include={"name", "description", "parameters"}, exclude_none=True),
            }
            for tool in tools
        ],
        is_one_call=request.parallel_tool_calls is False,
        must_call=choice not in (None, "none", "auto"),
        called=choice.name if isinstance(choice, ResponsesChoice) else None,
        schema=form.schema_ if form else None,
        schema_field="text.format",
        streams_calls=bool(request.stream),
        options={} if has_thought else {"enable_thinking": False},
        sampling={name: value for name in names if (value := getattr(request, name)) is not None},
        max_new_tokens=request.max_output_tokens,
    )


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    """Return the turns of a request; thought, text and calls that stand in a row are one."""
    turns: list[dict[str, Any]] = []
    if request.instructions:
        turns.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*turns, {"role": "user", "content": request.input}]
    for item in request.input:
        if isinstance(item, ResultItem):
            turns.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        elif isinstance(item, TurnItem) and item.role != "assistant":
            turns.append({"role": item.role, "content": _text(item.content)})
        else:
            # a thought stands in front of an answer: it begins the next one
            if not turns or turns[-1]["role"] != "assistant" or isinstance(item, ReasoningItem):
                turns.append({"role": "assistant", "content": None})
            _add_to_answer(turns[-1], item)
    return turns


def _add_to_answer(answer: dict[str, Any], item: TurnItem | CallItem | ReasoningItem) -> None:
    if isinstance(item, TurnItem):
        answer["content"] = (answer["content"] or "") + _text(item.content)
    elif isinstance(item, CallItem):
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        answer["tool_calls"] = [*answer.get("tool_calls", ()), call]
    else:
        answer["reasoning_content"] = _text(item.content or item.summary)


def _text(content: str | Sequence[ContentPart | ReasoningPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def response_error(error: ApiError) -> dict[str, Any]:
    """Return the event of an error that breaks a streamed reply off."""
    return {"type": "error", "code": error.code, "message": str(error), "param": error.param}


class _ResponseWriter:
    """Writes the object of one reply, as it is begun and as it has ended."""

    def __init__(self, reply: GrowingReply, request: ResponsesRequest) -> None:
        self._reply = reply
        self._request = request
        self._id = f"resp_{token_hex(12)}"
        self._created = int(time.time())

    def write(self, items: Sequence[Event] = (), reason: Reason | None = None) -> dict[str, Any]:
        request, choice = self._request, self._request.tool_choice
        form = request.text.format if request.text else None
        is_cut = reason == "length"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if reason is None else "incomplete" if is_cut else "completed",
            "model": self._reply.model.name,
            "output": list(items),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": dict(request.metadata or {}),
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            # its id leads to nothing later: no answer is kept for a previous_response_id
            "store": False,
            "temperature": request.temperature,
            "text": {"format": form.model_dump(by_alias=True) if form else {"type": "text"}},
            "tool_choice": choice.model_dump() if isinstance(choice, ResponsesChoice) else choice or "auto",
            "tools": [tool.model_dump() for tool in request.tools or ()],
            "top_p": request.top_p,
            "usage": None if reason is None else self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        read, written = self._reply.num_prompt_tokens, self._reply.num_tokens
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": self._reply.num_cached},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": self._reply.num_thought_tokens},
            "total_tokens": read + written,
        }


def _item(piece: AnswerPiece, name: str, status: str = "completed") -> Event:
    """Return the item of a block; `name`: its id without the prefix of its kind."""
    if isinstance(piece, ThoughtPiece):
        content = [_part(piece)] if piece.text else []
        return {"id": f"rs_{name}", "type": "reasoning", "summary": [], "content": content, "status": status}
    if isinstance(piece, CallPiece):
        call = {"call_id": piece.id, "name": piece.name, "arguments": piece.arguments}
        return {"id": f"fc_{name}", "type": "function_call", **call, "status": status}
    assert isinstance(piece, TextPiece)  # a call's further arguments are joined to it
    content = [_part(piece)] if piece.text else []
    message = {"role": "assistant", "content": content, "status": status}
    return {"id": f"msg_{name}", "type": "message", **message}


def _part(piece: ThoughtPiece | TextPiece) -> Event:
    if isinstance(piece, ThoughtPiece):
        return {"type": "reasoning_text", "text": piece.text}
    return {"type": "output_text", "text": piece.text, "annotations": [], "logprobs": []}


async def whole_response(reply: GrowingReply, request: ResponsesRequest) -> dict[str, Any]:
    """Return a whole reply."""
    pieces: list[AnswerPiece] = []
    reason: Reason | None = None
    async for written in reply:
        pieces += written.pieces
        reason = written.reason
    blocks = merged(pieces)
    ends = [None] * (len(blocks) - 1) + [reason]
    items = [
        _item(piece, token_hex(12), _status(piece, end)) for piece, end in zip(blocks, ends, strict=False)
    ]
    return _ResponseWriter(reply, request).write(items, reason)


def _status(piece: AnswerPiece, reason: Reason | None) -> str:
    """Return an item's state by the reason that ended it: nobody may carry out a call that was cut."""
    if reason != "length":
        return "completed"
    try:
        is_whole = isinstance(piece, CallPiece) and isinstance(json.loads(piece.arguments), dict)
    except ValueError:
        is_whole = False
    return "completed" if is_whole else "incomplete"


class _ItemEvents(BlockEvents):
    """Writes the events of a reply's items."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[Event] = []
        self.reason: Reason | None = None
        """The reason of the answer's end, once it is known."""
        self._name = ""

    def begin(self, index: int, piece: AnswerPiece) -> list[Event]:
        self._name = token_hex(12)
        if isinstance(piece, CallPiece):
            empty = CallPiece(piece.index, piece.id, piece.name, "")
            return [self._added(index, empty)]
        # clients add the deltas to what they are told at the begin: a text there would come twice
        start = ThoughtPiece("") if isinstance(piece, ThoughtPiece) else TextPiece("")
        place = self._place(index, start)
        return [
            self._added(index, start),
            {"type": "response.content_part.added", **place, "part": _part(start)},
        ]

    def _added(self, index: int, empty: AnswerPiece) -> Event:
        item = _item(empty, self._name, "in_progress")
        return {"type": "response.output_item.added", "output_index": index, "item": item}

    def _place(self, index: int, piece: AnswerPiece) -> Event:
        place = {"item_id": _item(piece, self._name)["id"], "output_index": index}
        return place if isinstance(piece, CallPiece) else {**place, "content_index": 0}

    def go_on(self, index: int, piece: AnswerPiece) -> list[Event]:
        place = self._place(index, self.blocks[index])
        if isinstance(piece, ThoughtPiece):
            return [{"type": "response.reasoning_text.delta", **place, "delta": piece.text}]
        if isinstance(piece, TextPiece):
            return [{"type": "response.output_text.delta", **place, "delta": piece.text, "logprobs": []}]
        text = piece.text if isinstance(piece, ArgumentsPiece) else piece.arguments
        return [{"type": "response.function_call_arguments.delta", **place, "delta": text}]

    def end(self, index: int, block: AnswerPiece) -> list[Event]:
        status = _status(block, self.reason)
        place, item = self._place(index, block), _item(block, self._name, status)
        self.items.append(item)
        done = {"type": "response.output_item.done", "output_index": index, "item": item}
        if isinstance(block, CallPiece):
            if status == "incomplete":
                return [done]
            whole = {"name": block.name, "arguments": block.arguments}
            return [{"type": "response.function_call_arguments.done", **place, **whole}, done]
        assert isinstance(block, ThoughtPiece | TextPiece)
        more: Event = {} if isinstance(block, ThoughtPiece) else {"logprobs": []}
        kind = "reasoning_text" if isinstance(block, ThoughtPiece) else "output_text"
        return [
            {"type": f"response.{kind}.done", **place, "text": block.text, **more},
            {"type": "response.content_part.done", **place, "part": _part(block)},
            done,
        ]


async def response_events(reply: GrowingReply, request: ResponsesRequest) -> AsyncIterator[Event]:
    """Yield the events of a streamed reply, numbered."""
    number = 0
    async for event in _events(reply, request):
        yield {**event, "sequence_number": number}
        number += 1


async def _events(reply: GrowingReply, request: ResponsesRequest) -> AsyncIterator[Event]:
    writer, items = _ResponseWriter(reply, request), _ItemEvents()
    for kind in ("created", "in_progress"):
        yield {"type": f"response.{kind}", "response": writer.write()}
    reason: Reason | None = None
    async for written in reply:
        for event in items.add(written.pieces):
            yield event
        reason = written.reason
    items.reason = reason
    for event in items.finish():
        yield event
    whole = writer.write(items.items, reason)
    yield {"type": f"response.{whole['status']}", "response": whole}
