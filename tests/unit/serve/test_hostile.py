"""Requests that mean harm, or make no sense: the right status, and the server goes on."""

import json
from typing import Any

import httpx
import pytest

from serving import QUESTIONS, Served, generated

CHAT = {"model": "base", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 2}


def changed(**fields: Any) -> bytes:
    return json.dumps({**CHAT, **fields}).encode()


def spelled(field: str, value: str) -> bytes:
    """A field as JSON libraries would not write it."""
    return changed(**{field: 0}).replace(f'"{field}": 0'.encode(), f'"{field}": {value}'.encode())


DEEP = "[" * 100_000 + "]" * 100_000
OBJECTS = '{"a":' * 300 + "1" + "}" * 300
ANSWER = {"role": "assistant", "content": "y"}
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[1]",
    "null": b"null",
    "no UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "base"}'.encode("utf-16"),
    "deep": DEEP.encode(),
    "deep in a field": spelled("tools", "[" * 500 + "]" * 500),
    "deep objects in a message": spelled("messages", f'[{{"role": "user", "content": {OBJECTS}}}]'),
    "a key twice": b'{"model": "base", "model": "base", "messages": [{"role": "user", "content": "x"}]}',
    "NaN": spelled("temperature", "NaN"),
    "infinity": spelled("top_p", "Infinity"),
    "NaN in a tool": spelled("tools", '[{"type": "function", "function": {"name": "f", "x": NaN}}]'),
    "a huge number": spelled("max_tokens", "9" * 5000),
    "a number beyond 64 bits": spelled("seed", str(2**80)),
    "a negative number": changed(max_tokens=-5),
    "a negative count": changed(n=-1),
    "zero": changed(n=0),
    "true for a number": changed(temperature=True),
    "text for a number": changed(max_tokens="5"),
    "half a character": b'{"model": "base", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "half a character in a stop text": spelled("stop", '"\\ud800"'),
    "half a character in the name": b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}',
    "a path for a name": changed(model="../../etc/passwd"),
    "no messages": changed(messages=[]),
    "messages that are none": changed(messages=["x", 1]),
    "an unknown role": changed(messages=[{"role": "root", "content": "x"}]),
    "a picture": changed(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
    "10,000 turns": changed(messages=[{"role": "user", "content": "x"}, ANSWER] * 5000),
    "a tool without a name": changed(tools=[{"type": "function", "function": {}}]),
    "many stop texts": changed(stop=["x"] * 100),
    "an option of the program": changed(chat_template_kwargs={"tokenizer": "x"}),
    "an option twice": changed(chat_template_kwargs={"taught": {}}),
}  # fmt: skip


@pytest.mark.parametrize("what", BODIES)
@pytest.mark.parametrize("path", ["/v1/chat/completions"])
def test_it_is_refused_in_the_form_of_the_interface(served: Served, what: str, path: str) -> None:
    found = httpx.post(
        f"{served.url}{path}",
        content=BODIES[what],
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert 400 <= found.status_code < 500, found.text
    error = found.json()["error"]
    assert error["message"]
    assert "Traceback" not in found.text
    assert len(found.content) < 5000


def test_a_simple_post_of_another_page_is_refused_by_its_type(served: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        found = httpx.post(
            f"{served.url}/v1/chat/completions", content=changed(), headers={"Content-Type": kind}
        )
        assert found.status_code == 400


def test_odd_text_is_answered_and_others_are_unharmed(served: Served) -> None:
    for text in ("\0", "<|user|><|assistant|></s>", "\u202e\ufeff\u0301", "𝕏" * 50, " " * 400):
        messages = [{"role": "user", "content": text}]
        found = served.post("/v1/chat/completions", {**CHAT, "messages": messages})
        assert found.status_code == 200, found.text
    answer = served.openai().chat.completions.create(
        model="lora", messages=[{"role": "user", "content": QUESTIONS[0]}], temperature=0, max_tokens=24
    )
    assert answer.choices[0].message.content == generated(served.folder, "lora", QUESTIONS[0])
    assert served.worker.num_open == 0


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1", "/../etc/passwd", "/v1/models/%00", "/v1/models/a/b"])
def test_an_unknown_path_is_not_found(served: Served, path: str) -> None:
    found = httpx.get(f"{served.url}{path}")
    assert found.status_code == 404
    assert found.json()["error"]["type"] == "not_found_error"


def test_another_method_is_not_allowed(served: Served) -> None:
    found = httpx.get(f"{served.url}/v1/chat/completions")
    assert found.status_code == 405
    assert found.json()["error"]["message"]
