"""`/v1/completions`: texts gone on with, as OpenAI writes them, whole or streamed.

Source: https://platform.openai.com/docs/api-reference/completions/object.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from secrets import token_hex
from typing import Any

from glmtune.serve.answer import AddedText
from glmtune.serve.chat import usage
from glmtune.serve.schema import CompletionRequest
from glmtune.serve.service import GrowingReply, Question
from glmtune.templates.answer_stream import TextPiece
from glmtune.tokenizers.protocol import Tokenizer


def completion_questions(request: CompletionRequest) -> list[Question]:
    """Return the questions of a request, one for each of its prompts."""
    return [
        Question(
            model=request.model,
            prompt=prompt,
            sampling=request.sampling,
            max_new_tokens=request.max_tokens,
            stops=request.stops,
            num_answers=request.n or 1,
            num_likeliest=request.logprobs,
        )
        for prompt in request.prompts
    ]


def _head(reply: GrowingReply) -> dict[str, Any]:
    return {
        "id": f"cmpl-{token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": reply.model.name,
    }


async def completion_chunks(
    replies: Sequence[GrowingReply], *, includes_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of streamed replies, one reply after the other."""
    head = _head(replies[0])
    more: dict[str, Any] = {"usage": None} if includes_usage else {}
    first = 0
    for reply in replies:
        tokens = [_LoggedTokens(reply.model.tokenizer) for _ in reply.answers]
        # the replies behind it are written meanwhile; their tokens wait in their queues
        async for written in reply:
            text = _text(written)
            listed = tokens[written.index].listed([written])
            if text or listed or written.reason:
                choice = {
                    "index": first + written.index, "text": text, "logprobs": listed,
                    "finish_reason": written.reason,
                }  # fmt: skip
                yield {**head, "choices": [choice], **more}
        first += len(reply.answers)
    if includes_usage:
        yield {**head, "choices": [], "usage": _total(replies)}


async def completion(replies: Sequence[GrowingReply]) -> dict[str, Any]:
    """Return whole replies."""
    choices: list[dict[str, Any]] = []
    for reply in replies:
        found: list[list[AddedText]] = [[] for _ in reply.answers]
        async for written in reply:
            found[written.index].append(written)
        for answer in found:
            choices.append(
                {
                    "index": len(choices),
                    "text": "".join(map(_text, answer)),
                    "logprobs": _LoggedTokens(reply.model.tokenizer).listed(answer),
                    "finish_reason": answer[-1].reason,
                }
            )
    return {**_head(replies[0]), "choices": choices, "usage": _total(replies)}


def _text(written: AddedText) -> str:
    return "".join(piece.text for piece in written.pieces if isinstance(piece, TextPiece))


def _total(replies: Sequence[GrowingReply]) -> dict[str, Any]:
    counts = list(map(usage, replies))
    # a text that is gone on with has no thought to count
    cached = sum(count["prompt_tokens_details"]["cached_tokens"] for count in counts)
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    sums = {name: sum(count[name] for count in counts) for name in names}
    return {**sums, "prompt_tokens_details": {"cached_tokens": cached}}


class _LoggedTokens:
    """Lists the tokens of one answer as the older interface does: by name, with their places in the text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._place = 0

    def listed(self, answer: Sequence[AddedText]) -> Mapping[str, Any] | None:
        """Return the lists of these tokens; None if no log-probabilities were asked for."""
        drawn = [written.drawn for written in answer if written.drawn]
        if not drawn:
            return None
        names = [self._tokenizer.decode([token]) for token, _ in drawn]
        places = []
        for name in names:
            # counted in characters of the tokens' own texts, which may differ from the joined text
            places.append(self._place)
            self._place += len(name)
        return {
            "tokens": names,
            "token_logprobs": [likely.logprob for _, likely in drawn],
            "top_logprobs": [
                {self._tokenizer.decode([other]): logprob for other, logprob in likely.likeliest}
                for _, likely in drawn
            ],
            "text_offset": places,
        }
