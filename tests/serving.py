"""A real server in this process: uvicorn in a thread, on a port of its own."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import torch
from openai import OpenAI

from glmtune import encode_messages, load_model, load_tokenizer
from glmtune.conversation import answer_text
from glmtune.serve.api import build_app
from glmtune.serve.guard import Access
from glmtune.serve.limits import ServerLimits
from glmtune.serve.opening import open_models
from glmtune.serve.running import AnswerServer, listen
from glmtune.serve.service import Service
from glmtune.serve.worker import Worker
from models import tiny_folder
from tuned import tune

NAMES = ("base", "lora", "short")
"""A base and its adapters: LoRA and a P-Tuning prefix."""
QUESTIONS = ("今天天气很好", "How much does it cost?", "你好")
NEW = 24


@dataclass
class Served:
    """A server that runs."""

    port: int
    worker: Worker
    app: Any
    folder: Path
    key: str = "none"
    client: OpenAI | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self) -> OpenAI:
        """One client for all: making it takes longer than a short answer."""
        if self.client is None:
            self.client = OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=120)
        return self.client

    def post(self, path: str, body: Any = None, **settings: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, **settings)

    def wait(self, rows: int = 0) -> None:
        """Until so many answers are being written."""
        patiently(lambda: self.worker.engine.num_rows == rows)


def patiently(is_so: Any, seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def base_with_adapters(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A tiny base, lively enough that its answers differ, and two adapters on it."""
    base = tiny_folder(folder / "base", lively=8, seq_length=512)
    return base, {name: tune(base, folder / name, name) for name in NAMES[1:]}


@contextmanager
def serving(
    base: Path,
    adapters: Mapping[str, Path] | None = None,
    *,
    limits: ServerLimits | None = None,
    access: Access | None = None,
    logs_prompts: bool = False,
) -> Iterator[Served]:
    """Run a server; at the end it stops as by a signal."""
    limits = limits or ServerLimits()
    engine, models = open_models(base, adapters or {}, limits, dtype="fp32", device="cpu", quant=None)
    worker = Worker(engine, max_open=limits.max_open)
    access = access or Access(host="127.0.0.1")
    app = build_app(Service(worker, models, limits, logs_prompts=logs_prompts), access)
    listening = listen("127.0.0.1", 0)
    server = AnswerServer(app, worker)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    patiently(lambda: server.started)
    served = Served(listening.getsockname()[1], worker, app, base.parent, access.key or "none")
    try:
        yield served
    finally:
        if served.client:
            served.client.close()
        server.handle_exit(15, None)
        thread.join(60)
        assert not thread.is_alive()


@cache
def loaded(folder: Path, name: str) -> tuple[Any, Any]:
    return load_model(folder / name, dtype="fp32"), load_tokenizer(folder / name)


@cache
def generated(folder: Path, name: str, question: str) -> str:
    """The answer of `model.generate`, greedy, as the official chat shows it."""
    model, tokenizer = loaded(folder, name)
    ids = torch.tensor([encode_messages(tokenizer, [{"role": "user", "content": question}])])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=tokenizer.stop_ids,
    )
    answer = [token for token in out[0, ids.shape[1] :].tolist() if token not in tokenizer.stop_ids]
    return str(tokenizer.chat_format.shown(answer_text(tokenizer, answer)))
