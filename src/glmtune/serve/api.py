"""The HTTP interface: routes, the reading of bodies, errors in the form of the interface."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from glmtune.serve.chat import chat_chunks, chat_completion, chat_question
from glmtune.serve.completions import completion, completion_chunks, completion_questions
from glmtune.serve.errors import ApiError, shutting_down
from glmtune.serve.guard import Access, AccessGuard
from glmtune.serve.limits import ServerLimits
from glmtune.serve.metrics import Metrics
from glmtune.serve.schema import ChatRequest, CompletionRequest
from glmtune.serve.service import GrowingReply, Service
from glmtune.serve.streaming import EventStream, data_events, unless_gone
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


def build_app(service: Service, access: Access) -> FastAPI:
    """Return the server's ASGI application. Raises `ConfigError` for an address without a key."""
    metrics = Metrics(service.worker)
    service.ended.append(metrics.count)

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.close()
        await service.worker.join()

    app = FastAPI(title="glmtune", summary="Tuned GLM models behind OpenAI's interface.", lifespan=live)
    app.include_router(_openai_routes(service))
    app.include_router(_own_routes(service, metrics))
    _answer_errors(app)
    _add_middleware(app, access, service.limits)
    return app


def _add_middleware(app: FastAPI, access: Access, limits: ServerLimits) -> None:
    if access.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(access.origins), allow_methods=["*"], allow_headers=["*"]
        )
    # the last one added is the first to see a request
    app.add_middleware(AccessGuard, access=access, write_error=error_response, limits=limits)


def error_response(error: ApiError, _path: str = "") -> JSONResponse:
    """Return the response for an error."""
    return JSONResponse(error.body, error.status, dict(error.headers or {}))


def _answer_errors(app: FastAPI) -> None:
    """Have every error answered in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> Response:
        return error_response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def refuse_field(request: Request, error: RequestValidationError) -> Response:
        return error_response(_field_error(error.errors()), request.url.path)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        return error_response(
            ApiError(error.status_code, str(error.detail), headers=headers), request.url.path
        )


def _field_error(errors: Sequence[dict[str, Any]]) -> ApiError:
    """Return the error for the first field that is wrong."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is no JSON that is read here: {first['ctx']['error']}", code="invalid_json"
        )
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param}: not supported here", param=param, code="unsupported_parameter")
    where = f"{param}: " if param else "the body: "
    return ApiError(400, f"{where}{first['msg']}", param=param, code="invalid_value")


def _openai_routes(service: Service) -> APIRouter:
    router = APIRouter(route_class=StrictRoute, prefix="/v1", responses=REFUSALS)

    @router.post("/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The next turn of a conversation, whole or as server-sent events."""
        reply = await unless_gone(request, service.ask(chat_question(body)))
        if body.stream:
            return stream(service, chat_chunks(reply, includes_usage=body.includes_usage), [reply])
        return JSONResponse(await unless_gone(request, chat_completion(reply)))

    @router.post("/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """A text gone on with, whole or as server-sent events."""
        replies: list[GrowingReply] = []
        try:
            for question in completion_questions(body):
                reply = await unless_gone(request, service.ask(question))
                replies.append(reply)
            if not body.stream:
                return JSONResponse(await unless_gone(request, completion(replies)))
        except BaseException:
            for reply in replies:
                reply.close()
            raise
        return stream(service, completion_chunks(replies, includes_usage=body.includes_usage), replies)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The names that requests choose: the base and each adapter."""
        return {"object": "list", "data": [_listed(name) for name in service.models]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of these names."""
        return _listed(service.model(name).name)

    return router


def stream(
    service: Service, chunks: AsyncIterator[dict[str, Any]], replies: Sequence[GrowingReply]
) -> Response:
    """Return the server-sent events of replies, which are given up when the client goes."""

    async def events() -> AsyncIterator[str]:
        try:
            async for event in data_events(chunks):
                yield event
        finally:
            for reply in replies:
                reply.close()

    return EventStream(events(), send_timeout_s=service.limits.send_timeout_s)


def _listed(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "glmtune"}


def _own_routes(service: Service, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Says if requests can be answered."""
        if not service.worker.is_alive:
            raise shutting_down()
        return {"status": "ok"}

    @router.get("/metrics")
    async def figures() -> Response:
        """The server's figures for Prometheus."""
        return Response(metrics.write(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
