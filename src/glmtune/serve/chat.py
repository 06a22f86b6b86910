"""`/v1/chat/completions`: questions from requests, replies as OpenAI writes them, whole or streamed.

Source: https://platform.openai.com/docs/api-reference/chat/object, .../chat/streaming.
"""

import time
from collections.abc import AsyncIterator, Sequence
from secrets import token_hex
from typing import Any

from glmtune.generate.sampling import Likely
from glmtune.serve.answer import AddedText
from glmtune.serve.errors import ApiError
from glmtune.serve.schema import ChatRequest, FunctionChoice
from glmtune.serve.service import GrowingReply, Question
from glmtune.templates import OPTIONS
from glmtune.templates.answer_stream import (
    AnswerPiece,
    ArgumentsPiece,
    CallPiece,
    TextPiece,
    ThoughtPiece,
)
from glmtune.tokenizers.protocol import Tokenizer


def chat_question(request: ChatRequest) -> Question:
    """Return the question of a request. Raises `ApiError` for fields that contradict each other."""
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs: true", param="top_logprobs")
    if request.max_tokens is not None and request.max_completion_tokens not in (None, request.max_tokens):
        raise ApiError(
            400, "max_tokens: differs from max_completion_tokens, its later name", param="max_tokens"
        )
    schema = request.response_format.schema_ if request.response_format else None
    choice = request.tool_choice
    tools = () if choice == "none" else request.tools or ()
    if schema is not None and tools:
        raise ApiError(
            400, "response_format: an answer in a form cannot call tools here", param="response_format"
        )
    unknown = sorted(set(request.chat_template_kwargs or {}) - set(OPTIONS))
    if unknown:
        raise ApiError(
            400,
            f"chat_template_kwargs: {unknown[0]!r:.80} is none of {', '.join(OPTIONS)}",
            param=f"chat_template_kwargs.{unknown[0]:.80}",
            code="unsupported_parameter",
        )
    return Question(
        model=request.model,
        messages=[message.model_dump(exclude_unset=True) for message in request.messages],
        tools=tools,
        is_one_call=request.parallel_tool_calls is False,
        streams_calls=bool(request.stream),
        must_call=choice not in (None, "none", "auto"),
        called=choice.function.name if isinstance(choice, FunctionChoice) else None,
        schema=schema,
        options=request.chat_template_kwargs or {},
        sampling=request.sampling,
        max_new_tokens=request.max_completion_tokens or request.max_tokens,
        stops=request.stops,
        num_answers=request.n or 1,
        num_likeliest=(request.top_logprobs or 0) if request.logprobs else None,
    )


class _Writer:
    """Writes one reply to a chat."""

    def __init__(self, reply: GrowingReply, kind: str) -> None:
        self.reply = reply
        self.head = {
            "id": f"chatcmpl-{token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": reply.model.name,
        }

    def chunk(self, choices: Sequence[dict[str, Any]], **more: object) -> dict[str, Any]:
        return {**self.head, "choices": list(choices), **more}

    def written(self, written: AddedText) -> list[dict[str, Any]]:
        """Return the chunks of what a token adds; none if it adds nothing yet."""
        drawn = None if written.drawn is None else token_logprob(self.reply.model.tokenizer, *written.drawn)
        deltas = [_delta(piece) for piece in written.pieces]
        # half a character, or text kept back: the log-probability still needs a chunk to stand in
        if drawn is not None and not deltas:
            deltas = [{"content": ""}]
        choices: list[dict[str, Any]] = [
            {"index": written.index, "delta": delta, "logprobs": None, "finish_reason": None}
            for delta in deltas
        ]
        if drawn is not None:
            # in the first only: a client that joins the chunks would count the token twice
            choices[0]["logprobs"] = {"content": [drawn], "refusal": None}
        if written.reason:
            end = {"index": written.index, "delta": {}, "logprobs": None, "finish_reason": written.reason}
            choices.append(end)
        return [self.chunk([choice]) for choice in choices]


async def chat_chunks(reply: GrowingReply, *, includes_usage: bool) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a streamed reply."""
    writer = _Writer(reply, "chat.completion.chunk")
    more: dict[str, Any] = {"usage": None} if includes_usage else {}
    for answer in reply.answers:
        # the role comes once and first, as OpenAI's stream has it; clients begin their message by it
        begin = {"role": "assistant", "content": ""}
        choice = {"index": answer.index, "delta": begin, "logprobs": None, "finish_reason": None}
        yield {**writer.chunk([choice]), **more}
    async for written in reply:
        for chunk in writer.written(written):
            yield {**chunk, **more}
    if includes_usage:
        # OpenAI's last chunk has no choices: clients that read choices[0] have to ask for usage first
        yield writer.chunk([], usage=usage(reply))


async def chat_completion(reply: GrowingReply) -> dict[str, Any]:
    """Return a whole reply."""
    choices: list[dict[str, Any]] = []
    logprobs: list[list[dict[str, Any]]] = [[] for _ in reply.answers]
    pieces: list[list[AnswerPiece]] = [[] for _ in reply.answers]
    reasons = [""] * len(reply.answers)
    async for written in reply:
        pieces[written.index] += written.pieces
        if written.drawn:
            logprobs[written.index].append(token_logprob(reply.model.tokenizer, *written.drawn))
        reasons[written.index] = written.reason or reasons[written.index]
    for index, reason in enumerate(reasons):
        listed = {"content": logprobs[index], "refusal": None} if logprobs[index] else None
        message = whole_message(pieces[index])
        choices.append({"index": index, "message": message, "logprobs": listed, "finish_reason": reason})
    return _Writer(reply, "chat.completion").chunk(choices, usage=usage(reply))


def whole_message(pieces: Sequence[AnswerPiece]) -> dict[str, Any]:
    """Return the message that the pieces of an answer are."""
    thought = "".join(piece.text for piece in pieces if isinstance(piece, ThoughtPiece))
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
    calls = [_call(piece) for piece in pieces if isinstance(piece, CallPiece)]
    message: dict[str, Any] = {
        "role": "assistant",
        # OpenAI writes null beside calls alone
        "content": text or (None if calls else ""),
        "refusal": None,
    }
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _delta(piece: AnswerPiece) -> dict[str, Any]:
    if isinstance(piece, ThoughtPiece):
        return {"reasoning_content": piece.text}
    if isinstance(piece, TextPiece):
        return {"content": piece.text}
    if isinstance(piece, ArgumentsPiece):
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
    return {"tool_calls": [{"index": piece.index, **_call(piece)}]}


def _call(piece: CallPiece) -> dict[str, Any]:
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"id": piece.id, "type": "function", "function": function}


def usage(reply: GrowingReply) -> dict[str, Any]:
    """Return the numbers of tokens read and written so far."""
    read, written = reply.num_prompt_tokens, reply.num_tokens
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": reply.num_cached},
        "completion_tokens_details": {"reasoning_tokens": reply.num_thought_tokens},
    }


def token_logprob(tokenizer: Tokenizer, token: int, likely: Likely) -> dict[str, Any]:
    """Return a token's log-probability, and those of the likeliest in its place, as OpenAI lists them."""
    listed = [{**_spelled(tokenizer, other), "logprob": logprob} for other, logprob in likely.likeliest]
    return {**_spelled(tokenizer, token), "logprob": likely.logprob, "top_logprobs": listed}


def _spelled(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    text = tokenizer.decode([token])
    # half a character decodes to U+FFFD: its own bytes are not known here
    return {"token": text, "bytes": list(text.encode("utf-8", "replace"))}
