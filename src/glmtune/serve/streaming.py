"""Server-sent events, and whole answers that are given up when their client goes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from glmtune.serve.errors import ApiError

Result = TypeVar("Result")


class EventStream(StreamingResponse):
    """Server-sent events; the iterator is closed whatever happens, and a client that does not read is left.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[str], *, send_timeout_s: float, ended: Sequence[Callable[[], None]] = ()
    ) -> None:
        """`events`: an async generator of whole events; `ended`: called at the end, whatever it is."""
        # else nginx gathers them. Source: https://nginx.org/en/docs/http/ngx_http_proxy_module.html
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers)
        self._events: Any = events
        self._send_timeout_s = send_timeout_s
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes."""

        async def bounded(message: Message) -> None:
            # uvicorn's `send` waits for as long as the client's window is full
            async with asyncio.timeout(self._send_timeout_s):
                await send(message)

        try:
            await super().__call__(scope, receive, bounded)
        except TimeoutError:
            return  # uvicorn closes the connection
        finally:
            # not in a `finally` of the generator: closed before its first event, it would run none
            for note in self._ended:
                note()
            await self._events.aclose()


async def data_events(chunks: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[str]:
    """Yield OpenAI's events of a streamed reply: the chunks, an error that breaks it off, and the end."""
    try:
        async for chunk in chunks:
            yield f"data: {write_json(chunk)}\n\n"
    except ApiError as error:
        yield f"data: {write_json(error.body)}\n\n"
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]  # async generators have it
    yield "data: [DONE]\n\n"


async def named_events(
    events: AsyncIterator[Mapping[str, Any]], write_error: Callable[[ApiError], Mapping[str, Any]]
) -> AsyncIterator[str]:
    """Yield events that are named by their `type`, as Anthropic's and those of OpenAI's responses."""
    try:
        async for event in events:
            yield f"event: {event['type']}\ndata: {write_json(event)}\n\n"
    except ApiError as error:
        yield f"event: error\ndata: {write_json(write_error(error))}\n\n"
    finally:
        await events.aclose()  # type: ignore[attr-defined]  # async generators have it


def write_json(value: object) -> str:
    """Return JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Return the result of `work`; give it up when the client goes. Raises `ApiError` 499 then."""
    task = asyncio.ensure_future(work)
    # the body has been read, so the next message says that the client is gone
    watch = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            # 499 is nginx's code for a client that has gone; the log shows it, nobody reads the answer
            raise ApiError(499, "the client closed the connection", code="client_closed")
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        # until both have ended: a cancelled question still frees its requests
        await asyncio.gather(task, watch, return_exceptions=True)
