"""The parts that the routes of all interfaces share: bodies read strictly, streams, the errors documented."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from glmtune.serve.service import GrowingReply, Service
from glmtune.serve.streaming import EventStream
from glmtune.strict import parse_json


class _StrictRequest(Request):
    """A request whose JSON is read strictly: no key twice, nothing nested deeper than 100."""

    async def json(self) -> Any:  # Any: JSON
        return parse_json((await self.body()).decode("utf-8"))


class StrictRoute(APIRoute):
    """A route whose JSON body is read strictly. Raises what makes the answer 400."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return FastAPI's handler, given a request that reads strictly."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            # FastAPI calls `json` of the request it is given: a subclass is the one place to read strictly
            found: Response = await handle(_StrictRequest(request.scope, request.receive))
            return found

        return handle_strictly


class ErrorDetail(BaseModel):
    """The error of a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorDetail


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 413, 429, 503)
}
"""The answers of every route beside its own, for the OpenAPI document."""


def stream(service: Service, events: AsyncIterator[str], replies: Sequence[GrowingReply]) -> Response:
    """Return the server-sent events of replies, which are given up when the client goes."""
    ended = [reply.close for reply in replies]
    return EventStream(events, send_timeout_s=service.limits.send_timeout_s, ended=ended)
