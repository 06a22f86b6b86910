"""The routes of the interfaces beside OpenAI's chats: Anthropic's messages, and OpenAI's responses."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from glmtune.serve.messages import message_events, message_reply, messages_error, messages_question
from glmtune.serve.messages_schema import CountRequest, MessagesRequest
from glmtune.serve.responses import response_error, response_events, response_question, whole_response
from glmtune.serve.responses_schema import ResponsesRequest
from glmtune.serve.routes import REFUSALS, StrictRoute, stream
from glmtune.serve.service import Service
from glmtune.serve.streaming import named_events, unless_gone


def other_routes(service: Service) -> APIRouter:
    """Return the routes, which all ask the same service."""
    router = APIRouter(route_class=StrictRoute, prefix="/v1", responses=REFUSALS)

    @router.post("/messages")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """The next turn of a conversation in Anthropic's form, whole or as server-sent events."""
        reply = await unless_gone(request, service.ask(messages_question(body)))
        if body.stream:
            return stream(service, named_events(message_events(reply), messages_error), [reply])
        return JSONResponse(await unless_gone(request, message_reply(reply)))

    @router.post("/messages/count_tokens")
    async def count_tokens(body: CountRequest) -> dict[str, Any]:
        """The number of tokens that a conversation in Anthropic's form has for the model."""
        ids = await service.encode(service.model(body.model), messages_question(body))
        return {"input_tokens": len(ids)}

    @router.post("/responses")
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """The next turn of a conversation in the form of OpenAI's responses, whole or streamed."""
        reply = await unless_gone(request, service.ask(response_question(body)))
        if body.stream:
            return stream(service, named_events(response_events(reply, body), response_error), [reply])
        return JSONResponse(await unless_gone(request, whole_response(reply, body)))

    return router
