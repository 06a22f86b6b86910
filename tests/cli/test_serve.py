"""`glmtune serve` as a user types it, and as curl asks it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Done, glmtune

CHAT = {"model": "glm-tiny", "messages": [{"role": "user", "content": "你好"}], "temperature": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "glmtune", "serve", "glm-tiny", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    ) as process:
        assert process.stderr
        url = next(found[1] for line in process.stderr if (found := re.search(r"at (http\S+)/v1,", line)))
        yield process, url
        process.kill()


def curl(*words: str) -> str:
    done = subprocess.run(
        ["curl", "-sN", *words], capture_output=True, text=True, encoding="utf-8", timeout=120, check=True
    )
    return done.stdout


needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")


@needs_curl
def test_curl_gets_an_answer_and_the_pages(server: tuple[subprocess.Popen[str], str]) -> None:
    _, url = server
    assert json.loads(curl(f"{url}/v1/models"))["data"][0]["id"] == "glm-tiny"
    answer = json.loads(curl(f"{url}/v1/chat/completions", "--json", json.dumps({**CHAT, "max_tokens": 8})))
    assert answer["choices"][0]["message"]["content"].startswith("你好")
    assert "swagger" in curl(f"{url}/docs")
    assert 'glmtune_answers_total{model="glm-tiny",reason="length"} 1.0' in curl(f"{url}/metrics")
    assert json.loads(curl(f"{url}/v1/models", "-H", "Host: evil.example"))["error"]["code"] == "foreign_host"


@needs_curl
def test_a_signal_ends_an_open_stream_with_an_error_and_done(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = server
    body = json.dumps({**CHAT, "stream": True, "n": 8, "temperature": 2, "top_p": 1, "top_k": 0})
    with subprocess.Popen(
        ["curl", "-sN", f"{url}/v1/chat/completions", "--json", body],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as client:
        assert client.stdout
        assert client.stdout.readline().startswith("data: {")
        process.send_signal(signal.SIGTERM)
        events = [line for line in client.stdout if line.strip()]
    assert "shutting_down" in events[-2]
    assert events[-1] == "data: [DONE]\n"
    assert process.wait(60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def refused(*words: object, tmp_path: Path) -> Done:
    done = glmtune("serve", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "hint: " in done.stderr
    return done


def test_an_address_that_others_reach_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLMTUNE_API_KEY", raising=False)
    assert "no key protects it" in refused("glm-tiny", "--host", "0.0.0.0", tmp_path=tmp_path).stderr
    monkeypatch.setenv("GLMTUNE_API_KEY", "")
    assert "GLMTUNE_API_KEY: empty" in refused("glm-tiny", tmp_path=tmp_path).stderr


def test_a_port_that_is_taken_is_an_error_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert (
            f"127.0.0.1:{port} cannot be had" in refused("glm-tiny", "--port", port, tmp_path=tmp_path).stderr
        )
    assert "--port" in refused("glm-tiny", "--port", 99999, tmp_path=tmp_path).stderr


@pytest.mark.parametrize("adapter", ["runs/mine", "=runs/mine", "mine="])
def test_an_adapter_without_name_or_path_is_refused(adapter: str, tmp_path: Path) -> None:
    assert "is no NAME=PATH" in refused("glm-tiny", "--adapter", adapter, tmp_path=tmp_path).stderr


def test_two_adapters_of_one_name_and_one_named_as_the_base_are_refused(tmp_path: Path) -> None:
    twice = ("--port", 0, "--adapter", "a=x", "--adapter", "a=y")
    assert "a name is given twice" in refused("glm-tiny", *twice, tmp_path=tmp_path).stderr
    same = ("--port", 0, "--adapter", "glm-tiny=x")
    assert "the base's own name" in refused("glm-tiny", *same, tmp_path=tmp_path).stderr
