"""The server under load: a process of its own, clients in another, tokens a second and time to the first.

`--case tiny`: 64 streaming clients on glm-tiny for so many seconds, each answer compared with the one that
the engine gives alone; the server's memory is read as it goes. `--case speed`: the 170 M model of the
decoding benchmark in W8A8, the same requests at once and one at a time, in turn; beside llama.cpp's
`llama-server`, if `--llama-server` names one, on the same weights in q8_0.

    python -m benchmarks.serve --case tiny --seconds 300
    python -m benchmarks.serve --case speed --seconds 60 --clients 16
"""

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks import measure
from benchmarks.measure import Record

QUESTIONS = (
    "你好",
    "写一句关于春天的话",
    "How are you?",
    "类型#上衣*颜色#白色",
    "一加一等于几？",
    "推荐一本书",
    "今天天气怎么样",
    "讲个故事",
)
PROMPT_TOKENS, NEW_TOKENS = 64, 64
WARM_S = 2.0
PROMPTS_OF_A_ROUND = 200


def stream(port: int, path: str, body: dict[str, Any]) -> tuple[list[dict[str, Any]], list[float]]:
    """The chunks of one streamed answer, and the seconds at which they came."""
    import httpx

    start, chunks, times = time.perf_counter(), [], []
    ended = False
    with httpx.stream("POST", f"http://127.0.0.1:{port}{path}", json=body, timeout=600) as found:
        found.raise_for_status()
        for line in found.iter_lines():
            ended = ended or line == "data: [DONE]"
            if line.startswith("data: {"):
                chunks.append(json.loads(line[6:]))
                times.append(time.perf_counter() - start)
    assert ended, "a stream was cut"
    return chunks, times


def chat_body(question: str) -> dict[str, Any]:
    """A greedy chat with glm-tiny."""
    messages = [{"role": "user", "content": question}]
    return {
        "model": "glm-tiny", "messages": messages, "temperature": 0, "max_tokens": NEW_TOKENS, "stream": True,
    }  # fmt: skip


def ids_body(number: int) -> dict[str, Any]:
    """A greedy text of a fixed length behind ids that no other request has."""
    prompt = [100 + (7919 * (number * PROMPT_TOKENS + place)) % 60_000 for place in range(PROMPT_TOKENS)]
    return {
        "model": "bench", "prompt": prompt, "temperature": 0, "max_tokens": NEW_TOKENS,
        "n_predict": NEW_TOKENS, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def ask_for(
    port: int, seconds: float, clients: int, case: str, expected: dict[str, str], first: int = 0
) -> dict[str, Any]:
    """What so many clients saw: answers, tokens, seconds to the first token, and what was wrong.

    `first`: number of the first prompt; a server keeps prompts, so each round has its own.
    """
    end, firsts, wrong = time.perf_counter() + seconds, [], []
    counts = {"answers": 0, "tokens": 0}

    def ask_on(client: int) -> None:
        number = first + client
        while time.perf_counter() < end:
            question = QUESTIONS[number % len(QUESTIONS)]
            is_chat = case == "tiny"
            body = chat_body(question) if is_chat else ids_body(number)
            if not is_chat and not expected.get("is_llama"):
                body = {
                    name: value for name, value in body.items() if name not in ("n_predict", "ignore_eos")
                }
            chunks, times = stream(port, "/v1/chat/completions" if is_chat else "/v1/completions", body)
            if is_chat:
                text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
                wrong.extend([question] if text != expected[question] else [])
                counts["tokens"] += len(chunks) - 2
            else:
                counts["tokens"] += chunks[-1]["usage"]["completion_tokens"]
            firsts.append(times[1] if is_chat else times[0])  # a chat's first chunk has only the role
            counts["answers"] += 1
            number += clients

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask_on, range(clients)))
    took = time.perf_counter() - start
    cuts = quantiles(firsts, n=20) if len(firsts) > 1 else [firsts[0]] * 19
    return {
        **counts,
        "tokens_per_s": counts["tokens"] / took,
        "p50_first_s": cuts[9],
        "p95_first_s": cuts[18],
        "wrong": wrong,
    }


def in_another_process(*words: Any) -> dict[str, Any]:
    """`ask_for` in a process of its own, so that clients and server do not share an interpreter."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(ask_for, words)


def serve_bench(port: int, clients: int, threads: int) -> None:
    """Serve the 170 M in W8A8; it has no tokenizer, so ids go in and glm-tiny's spells those it knows."""
    import torch

    from benchmarks.models import build_model
    from glmtune import load_tokenizer
    from glmtune.generate import choose_compute
    from glmtune.generate.lanes import Lanes
    from glmtune.serve.api import build_app
    from glmtune.serve.guard import Access
    from glmtune.serve.limits import ServerLimits
    from glmtune.serve.running import AnswerServer, listen
    from glmtune.serve.service import ServedModel, Service
    from glmtune.serve.worker import Worker

    torch.set_num_threads(threads)
    model = choose_compute(build_model("170m", torch.float32), "fast")
    limits = ServerLimits(max_rows=clients)
    worker = Worker(Lanes(model, max_rows=clients), max_open=limits.max_open)
    served = ServedModel("bench", _Spelling(load_tokenizer("glm-tiny")), None, model.generation_config)
    app = build_app(Service(worker, [served], limits), Access(host="127.0.0.1"))
    AnswerServer(app, worker).run(sockets=[listen("127.0.0.1", port)])


class _Spelling:
    """glm-tiny's tokenizer for any ids, without a token that ends an answer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.stop_ids: list[int] = []
        self.end_id = -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def text_stream(self) -> Any:
        """A stream that spells each id by one of glm-tiny's."""
        from glmtune.tokenizers.stream import TextStream

        return TextStream(lambda ids: self._tokenizer.decode([300 + index % 2000 for index in ids]))


@contextmanager
def running(command: Sequence[str], port: int, path: str = "/health") -> Iterator[subprocess.Popen[bytes]]:
    """A server of its own process, once it answers."""
    import httpx

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                assert process.poll() is None, f"{command[0]} has ended"
                try:
                    if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield process
        finally:
            process.terminate()


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def expected_answers() -> dict[str, str]:
    """The engine's own greedy answers of glm-tiny, one by one."""
    from glmtune import encode_messages, load_model, load_tokenizer
    from glmtune.generate import Sampling, complete_texts

    model, tokenizer = load_model("glm-tiny"), load_tokenizer("glm-tiny")
    greedy = Sampling(do_sample=False, max_new_tokens=NEW_TOKENS)
    prompts = [encode_messages(tokenizer, [{"role": "user", "content": text}]) for text in QUESTIONS]
    texts = [complete_texts(model, tokenizer, [prompt], greedy)[0] for prompt in prompts]
    return dict(zip(QUESTIONS, texts, strict=True))


def memory_mib(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of a process."""
    import psutil

    return float(psutil.Process(process.pid).memory_info().rss / 2**20)


def run_tiny(options: argparse.Namespace) -> dict[str, Any]:
    """Many clients for long: the figures, and the server's memory before and after."""
    expected, port = expected_answers(), free_port()
    command = [sys.executable, "-m", "glmtune", "serve", "glm-tiny", "--port", str(port)]
    with running(command, port) as server:
        in_another_process(port, WARM_S, options.clients, "tiny", expected)
        before = memory_mib(server)
        found = in_another_process(port, options.seconds, options.clients, "tiny", expected)
        return {**found, "memory_mib": [before, memory_mib(server)]}


def products_alone(clients: int, threads: int) -> float:
    """How many times as fast the matrix products of all requests at once are: what the server cannot pass.

    On AVX2 a row of a prompt costs what a row of a batch does, and only reading the weights is shared.
    """
    import torch

    from benchmarks.models import build_model
    from glmtune.generate import choose_compute
    from glmtune.generate.fast import FastLinear

    torch.set_num_threads(threads)
    model = choose_compute(build_model("170m", torch.float32), "fast")
    head = model.get_output_embeddings()
    layers = [part for part in model.modules() if isinstance(part, FastLinear) and part is not head]

    def seconds(rows: int, read: int) -> float:
        """Of one pass, of which the output layer reads the last row of each request."""
        inputs = [(layer, torch.randn(rows, layer.in_features)) for layer in layers]
        inputs.append((head, torch.randn(read, head.in_features)))
        with torch.inference_mode():
            return min(
                measure.seconds_of(lambda: [layer.multiply(x) for layer, x in inputs]) for _ in range(3)
            )

    alone = seconds(PROMPT_TOKENS, 1) + NEW_TOKENS * seconds(1, 1)
    together = seconds(clients * PROMPT_TOKENS, clients) + NEW_TOKENS * seconds(clients, clients)
    return clients * alone / together


def run_speed(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Rounds of many at once, one at a time, and the peer."""
    port, peer_port = free_port(), free_port()
    words = (str(port), str(options.clients), str(options.threads))
    with running([sys.executable, "-m", "benchmarks.serve", "--serve", *words], port):
        sides: dict[str, tuple[int, int, dict[str, str]]] = {
            "at once": (port, options.clients, {}),
            "one at a time": (port, 1, {}),
        }
        if not options.llama_server:
            return _rounds(sides, options)
        import torch

        from benchmarks.llama import make_gguf
        from benchmarks.models import build_model

        weights = make_gguf(build_model("170m", torch.float32), options.work)
        context = options.clients * 2 * (PROMPT_TOKENS + NEW_TOKENS)
        peer = [
            str(options.llama_server), "-m", str(weights), "--port", str(peer_port), "-c", str(context),
            "--parallel", str(options.clients), "-t", str(options.threads), "--no-webui",
        ]  # fmt: skip
        with running(peer, peer_port):
            sides["llama-server"] = (peer_port, options.clients, {"is_llama": "yes"})
            return _rounds(sides, options)


def _rounds(
    sides: dict[str, tuple[int, int, dict[str, str]]], options: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    for port, clients, expected in sides.values():
        in_another_process(port, WARM_S, clients, "speed", expected)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, (port, clients, expected) in sides.items():
            asked = (port, options.seconds, clients, "speed", expected, (number + 1) * PROMPTS_OF_A_ROUND)
            found[name].append(in_another_process(*asked))
    return found


def main(words: Sequence[str] | None = None) -> Record:
    """One case; return the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=("tiny", "speed"), default="tiny")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, help="64 for tiny, 16 for speed")
    parser.add_argument(
        "--llama-server", type=Path, help="llama.cpp's own server, as a peer; else of LLAMA_SERVER"
    )
    options = measure.parse(parser, words)
    if os.environ.get("LLAMA_SERVER"):
        options.llama_server = options.llama_server or Path(os.environ["LLAMA_SERVER"])
    options.clients = options.clients or (64 if options.case == "tiny" else 16)
    record = measure.begin(f"serve {options.case}", "tokens/s", options)
    record |= {"clients": options.clients, "seconds": options.seconds}
    if options.case == "tiny":
        found = {"streams": [run_tiny(options)]}
        record["lost, mixed or cut"] = len(found["streams"][0]["wrong"])
        record["memory_mib"] = found["streams"][0]["memory_mib"]
    else:
        record["products alone"] = round(products_alone(options.clients, options.threads), 2)
        found = run_speed(options)
    record["sides"] = {name: [one["tokens_per_s"] for one in rounds] for name, rounds in found.items()}
    for figure in ("answers", "p50_first_s", "p95_first_s"):
        record[figure] = {name: [round(one[figure], 4) for one in rounds] for name, rounds in found.items()}
    return measure.finish(record, "serve", options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve_bench(*map(int, sys.argv[2:5]))
    else:
        main()
