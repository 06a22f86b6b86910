"""A server that is full, slow clients, clients that go, and the end of the server."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from glmtune.serve.guard import Access
from glmtune.serve.limits import ServerLimits
from glmtune.serve.streaming import EventStream
from serving import Served, base_with_adapters, patiently, serving

LIMITS = ServerLimits(
    max_rows=1, max_waiting=1, max_body_bytes=20_000, body_timeout_s=0.5, max_new_tokens=400
)
KEY = "the key"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base, _ = base_with_adapters(tmp_path_factory.mktemp("small"))
    with serving(base, limits=LIMITS, access=Access(host="127.0.0.1", key=KEY)) as running:
        yield running


def long_answer(served: Served, **settings: Any) -> Any:
    # no text of the answer: the model's own end would come too soon
    return served.openai().completions.create(
        model="base", prompt="今天", max_tokens=400, temperature=0, **settings
    )


def raw(
    served: Served, body: bytes, length: int | None = None, path: str = "/v1/completions"
) -> socket.socket:
    """A connection that has sent a request."""
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {length or len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_a_full_queue_says_so_at_once_and_the_others_go_on(small: Served) -> None:
    streams = [long_answer(small, stream=True) for _ in range(2)]
    with pytest.raises(openai.RateLimitError) as caught:
        long_answer(small)
    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["retry-after"]
    texts = ["".join(chunk.choices[0].text for chunk in stream) for stream in streams]
    assert texts[0] == texts[1] != ""
    assert small.worker.num_open == 0


def test_a_client_that_goes_frees_its_place(small: Served) -> None:
    stream = long_answer(small, stream=True)
    next(iter(stream))
    small.wait(rows=1)
    stream.close()
    patiently(lambda: small.worker.num_open == 0)
    small.wait(rows=0)


def test_a_client_that_waits_for_a_whole_answer_and_goes_frees_its_place(small: Served) -> None:
    body = json.dumps({"model": "base", "prompt": "今天", "max_tokens": 400, "temperature": 0}).encode()
    connection = raw(small, body)
    small.wait(rows=1)
    connection.close()
    patiently(lambda: small.worker.num_open == 0)
    small.wait(rows=0)
    assert (
        'reason="cancelled"'
        in httpx.get(f"{small.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    )


def test_a_body_that_does_not_arrive_is_not_waited_for(small: Served) -> None:
    with raw(small, b'{"model":', length=1000) as connection:
        assert connection.recv(1000).split()[1] == b"408"


@pytest.mark.parametrize("is_counted", [True, False])
def test_a_body_that_is_too_large_is_refused(small: Served, is_counted: bool) -> None:
    body = json.dumps({"model": "base", "prompt": "x" * 30_000}).encode()
    content: Any = body if is_counted else iter([body[:15_000], body[15_000:]])
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    found = httpx.post(f"{small.url}/v1/completions", content=content, headers=headers, timeout=60)
    assert found.status_code == 413
    assert found.json()["error"]["type"] == "invalid_request_error"


def test_the_key_is_needed_over_http(small: Served) -> None:
    assert httpx.get(f"{small.url}/v1/models").status_code == 401
    assert httpx.get(f"{small.url}/health").json() == {"status": "ok"}


def test_a_client_that_does_not_read_is_left_and_its_answer_given_up() -> None:
    closed: list[bool] = []

    async def events() -> AsyncIterator[str]:
        try:
            while True:
                yield "data: x\n\n"
        finally:
            closed.append(True)

    async def blocked(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    stream = EventStream(events(), send_timeout_s=0.05)
    asyncio.run(asyncio.wait_for(stream(scope, asyncio.Event().wait, blocked), 30))
    assert closed == [True]


def test_an_answer_is_given_up_if_its_client_is_gone_before_the_first_event() -> None:
    ended: list[str] = []

    async def events() -> AsyncIterator[str]:
        yield "data: x\n\n"

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def blocked(_: Any) -> None:
        await asyncio.Event().wait()

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    stream = EventStream(events(), send_timeout_s=30, ended=[lambda: ended.append("given up")])
    asyncio.run(stream(scope, gone, blocked))
    assert ended == ["given up"]


def test_the_end_of_the_server_ends_the_answers_with_an_error(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    base, _ = base_with_adapters(tmp_path_factory.mktemp("ending"))
    with serving(base) as served:
        stream = long_answer(served, stream=True)
        next(iter(stream))
        served.worker.close()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert served.post("/v1/completions", {"model": "base", "prompt": "x"}).status_code == 503
        assert httpx.get(f"{served.url}/health").status_code == 503


def test_an_error_within_is_no_text_for_clients_or_the_log(
    small: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = small.worker.engine.step
    failures = iter([RuntimeError("out of memory at 秘密 secret")])

    def fail_once() -> Any:
        for error in failures:
            raise error
        return step()

    monkeypatch.setattr(small.worker.engine, "step", fail_once)
    with pytest.raises(openai.InternalServerError) as caught:
        long_answer(small)
    assert "secret" not in str(caught.value)
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    assert long_answer(small).choices[0].text
    assert small.worker.num_open == 0


@pytest.mark.parametrize("logs_prompts", [False, True])
def test_a_prompt_is_logged_only_if_it_was_asked_for(
    logs_prompts: bool, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    base, _ = base_with_adapters(tmp_path_factory.mktemp("logging"))
    caplog.set_level(logging.INFO)
    with serving(base, logs_prompts=logs_prompts) as served:
        for role in ("user", "nobody"):
            messages = [{"role": role, "content": "my secret"}]
            served.post("/v1/chat/completions", {"model": "base", "messages": messages, "max_tokens": 1})
    logged = "".join(record.getMessage() for record in caplog.records if record.name == "glmtune")
    assert "tokens read" in logged
    assert ("my secret" in logged) == logs_prompts
