"""The HTTP interface: routes, the reading of bodies, errors in the form of the interface."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from glmtune.serve.chat import chat_chunks, chat_completion, chat_question
from glmtune.serve.completions import completion, completion_chunks, completion_questions
from glmtune.serve.errors import ApiError, shutting_down
from glmtune.serve.guard import Access, AccessGuard
from glmtune.serve.limits import ServerLimits
from glmtune.serve.messages import messages_error
from glmtune.serve.metrics import Metrics
from glmtune.serve.other_apis import other_routes
from glmtune.serve.routes import REFUSALS, StrictRoute, stream
from glmtune.serve.schema import ChatRequest, CompletionRequest
from glmtune.serve.service import GrowingReply, Service
from glmtune.serve.streaming import data_events, unless_gone


def build_app(service: Service, access: Access) -> FastAPI:
    """Return the server's ASGI application. Raises `ConfigError` for an address without a key."""
    metrics = Metrics(service.worker)
    service.ended.append(metrics.count)

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        # not before: only here does the loop run that the tokens go back to
        service.worker.start()
        yield
        service.worker.close()
        # the loop runs on meanwhile: the last events reach their clients by it
        await service.worker.join()

    app = FastAPI(title="glmtune", summary="Tuned GLM models behind OpenAI's interface.", lifespan=live)
    app.include_router(_openai_routes(service))
    app.include_router(other_routes(service))
    app.include_router(_own_routes(service, metrics))
    _answer_errors(app)
    _add_middleware(app, access, service.limits)
    return app


def _add_middleware(app: FastAPI, access: Access, limits: ServerLimits) -> None:
    if access.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=access.other_origins, allow_methods=["*"], allow_headers=["*"]
        )
    # the last one added is the first to see a request
    app.add_middleware(AccessGuard, access=access, write_error=error_response, limits=limits)


def error_response(error: ApiError, path: str = "") -> JSONResponse:
    """Return the response for an error, in the form of the interface that the path belongs to."""
    body = messages_error(error) if path.startswith("/v1/messages") else error.body
    return JSONResponse(body, error.status, dict(error.headers or {}))


def _answer_errors(app: FastAPI) -> None:
    """Have every error answered in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> Response:
        return error_response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def refuse_field(request: Request, error: RequestValidationError) -> Response:
        return error_response(_field_error(error.errors(), error.body), request.url.path)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        return error_response(
            ApiError(error.status_code, str(error.detail), headers=headers), request.url.path
        )


def _field_error(errors: Sequence[dict[str, Any]], body: object) -> ApiError:
    """Return the error for the field that is wrong."""
    # a value of several allowed forms has an error for each: the one that got furthest tells most
    first = max(errors, key=lambda error: len(_place(error, body)))
    place = _place(first, body)
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is no JSON that is read here: {first['ctx']['error']}", code="invalid_json"
        )
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param}: not supported here", param=param, code="unsupported_parameter")
    where = f"{param}: " if param else "the body: "
    return ApiError(400, f"{where}{first['msg']}", param=param, code="invalid_value")


def _place(error: Mapping[str, Any], body: object) -> list[str]:
    """Return the keys that lead to an error in the body, without pydantic's names of allowed forms."""
    place, inner = [], body
    # FastAPI puts "body" in front of each place
    for part in error["loc"][1:]:
        if (isinstance(inner, Mapping) and part in inner) or (
            isinstance(inner, list) and isinstance(part, int)
        ):
            place.append(str(part))
            inner = inner[part]
    # a field that is missing is no key of the body
    return [*place, str(error["loc"][-1])] if error["type"] == "missing" else place


def _openai_routes(service: Service) -> APIRouter:
    router = APIRouter(route_class=StrictRoute, prefix="/v1", responses=REFUSALS)

    @router.post("/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The next turn of a conversation, whole or as server-sent events."""
        reply = await unless_gone(request, service.ask(chat_question(body)))
        if body.stream:
            chunks = chat_chunks(reply, includes_usage=body.includes_usage)
            return stream(service, data_events(chunks), [reply])
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
        # a refusal of a later prompt, or the client's going: the answers to the earlier ones must end too
        except BaseException:
            for reply in replies:
                reply.close()
            raise
        chunks = completion_chunks(replies, includes_usage=body.includes_usage)
        return stream(service, data_events(chunks), replies)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The names that requests choose: the base and each adapter."""
        return {"object": "list", "data": [_listed(name) for name in service.models]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of these names."""
        return _listed(service.model(name).name)

    return router


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
