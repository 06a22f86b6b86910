"""Where `make setup` takes PyTorch from."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tools import torch_index

ROOT = Path(__file__).parents[1]
MIRROR = "https://mirror.example/cu126"


@pytest.mark.parametrize(
    ("asked", "system", "has_card", "answers", "index"),
    [
        ("auto", "linux", False, True, torch_index.CPU),
        ("auto", "linux", False, False, ""),
        ("auto", "linux", True, True, ""),
        ("auto", "darwin", False, True, ""),
        ("default", "linux", False, True, ""),
        ("", "linux", False, True, ""),
        (MIRROR, "linux", True, False, MIRROR),
    ],
)
def test_the_index_fits_the_machine(
    monkeypatch: pytest.MonkeyPatch, asked: str, system: str, has_card: bool, answers: bool, index: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(torch_index, "has_card", lambda: has_card)
    monkeypatch.setattr(torch_index, "answers", lambda _: answers)
    assert torch_index.choose(asked)[0] == index


@pytest.mark.parametrize(("code", "found"), [(0, True), (9, False)])  # 9: the driver does not answer
def test_a_card_is_one_that_nvidias_tool_finds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, found: bool
) -> None:
    monkeypatch.setattr(torch_index, "DRIVER", tmp_path / "none")
    monkeypatch.setattr(torch_index, "ON_WSL", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not torch_index.has_card()
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nexit {code}\n", encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert torch_index.has_card() == found


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/torch/" else 404)
        self.end_headers()
        self.wfile.write(b"wheels")

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Page)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_index_answers_or_is_given_up(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert torch_index.answers(f"{address}/torch/")
    assert not torch_index.answers(f"{address}/elsewhere/")
    monkeypatch.setattr(torch_index, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not torch_index.answers(f"http://127.0.0.1:{silent.getsockname()[1]}/torch/")


def test_pip_is_given_its_options_and_the_reader_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "tools/torch_index.py", MIRROR], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"--no-deps --index-url {MIRROR}\n"
    assert done.stderr == f"PyTorch from {MIRROR}: TORCH_INDEX says so\n"
