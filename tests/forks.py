"""Python programs run in forks of one process that has loaded torch and transformers, a second or two each.

A program of its own spends 4 s of processor time on imports before its first line. `run_fork` and `run_ranks`
run the same command in a fork of a server that has paid for them once; glmtune is imported in the fork.
Whatever depends on the interpreter's own start (its locale, PYTHONHOME, caps of the processor, memory) needs
`subprocess.run` instead.
"""

import atexit
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

PRELOADED = (
    "torch", "numpy", "safetensors.torch", "sentencepiece", "tiktoken", "tokenizers", "peft", "accelerate",
    "transformers.generation.utils", "transformers.models.auto.modeling_auto",
    "transformers.models.glm.modeling_glm", "transformers.models.glm4.modeling_glm4",
    "transformers.models.glm4_moe.modeling_glm4_moe", "torch.distributed", "pydantic", "click",
    "rich.console", "matplotlib.figure", "matplotlib.backends.backend_agg", "torch.utils.checkpoint",
)  # fmt: skip
GRACE_S = 2
"""Time that the other ranks have to end after one has failed."""


def run_fork(command: Sequence[str], **settings: Any) -> subprocess.CompletedProcess[Any]:
    """Run `python -m module`, `python -c code` or `python file` in a fork, as `subprocess.run` does."""
    return _run([command], **settings)


def run_ranks(count: int, *words: str, **settings: Any) -> subprocess.CompletedProcess[Any]:
    """Run a command in so many ranks, as `torchrun` does: one that fails ends all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    ranks = [{**world, "MASTER_PORT": port, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]
    return _run([[sys.executable, *words]] * count, ranks=ranks, **settings)


def _run(
    commands: Sequence[Sequence[str]],
    *,
    cwd: Path | str | None = None,
    env: dict[str, str] | None = None,
    input: str | bytes = b"",  # noqa: A002  (the name that subprocess has)
    ranks: Sequence[dict[str, str]] = ({},),
    timeout: int = 300,
    check: bool = False,
    capture_output: bool = True,
    text: bool = False,
    encoding: str | None = None,
    errors: str = "strict",
    limit_bytes: int | None = None,
) -> subprocess.CompletedProcess[Any]:
    assert capture_output
    with tempfile.TemporaryDirectory() as desk:
        names = [str(Path(desk) / name) for name in ("stdin", "stdout", "stderr")]
        Path(names[0]).write_bytes(input.encode() if isinstance(input, str) else input)
        environment = dict(os.environ if env is None else env)
        jobs = [
            {"words": list(command[1:]), "env": {**environment, **rank}, "cwd": str(cwd or Path.cwd()),
             "files": names, "timeout": timeout, "limit_bytes": limit_bytes}
            for command, rank in zip(commands, ranks, strict=True)
        ]  # fmt: skip
        server = _server()
        assert server.stdin
        assert server.stdout
        server.stdin.write(json.dumps(jobs) + "\n")
        server.stdin.flush()
        code = json.loads(server.stdout.readline())
        said = [Path(name).read_bytes() for name in names[1:]]
    is_text = text or encoding is not None
    out, err = (part.decode(encoding or "utf-8", errors) if is_text else part for part in said)
    done = subprocess.CompletedProcess(list(commands[0]), code, out, err)
    if check:
        done.check_returncode()
    return done


@cache
def _server() -> subprocess.Popen[str]:
    """The process that is forked; it ends with the tests, whose end closes its stdin."""
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # a pool of threads does not live on in a fork
    )
    atexit.register(server.communicate)
    return server


def serve() -> None:
    """Answer each line of jobs with the exit code of the first that failed, or 0."""
    del sys.path[0]  # the tests' folder, which a command does not have
    for name in PRELOADED:
        import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        jobs = json.loads(line)
        children = []
        for job in jobs:
            if not (child := os.fork()):
                _become(job)
            children.append(child)
        answers.write(f"{_wait_for(children)}\n")


def _wait_for(children: list[int]) -> int:
    failed = 0
    deadline = float("inf")
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            children.remove(child)
            if code := os.waitstatus_to_exitcode(status):
                failed = failed or code
                deadline = min(deadline, time.monotonic() + GRACE_S)
        elif time.monotonic() > deadline:
            deadline = float("inf")
            for other in children:
                os.kill(other, signal.SIGKILL)
        else:
            time.sleep(0.01)
    return failed


def _become(job: dict[str, Any]) -> None:
    """Be the program of a job, and end as it ends."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(job["env"])
        os.chdir(job["cwd"])
        signal.alarm(job["timeout"])
        _open_streams(job["files"])
        if limit := job["limit_bytes"]:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = _run_words(job["words"])
    except BaseException:  # noqa: BLE001  (as the interpreter does at a program's end)
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _open_streams(files: list[str]) -> None:
    """Have the job's files as stdin, stdout and stderr, in the encoding that its environment asks for."""
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    for number, (name, path) in enumerate(zip(("stdin", "stdout", "stderr"), files, strict=True)):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
        handling = "backslashreplace" if number == 2 else errors or "strict"
        raw = io.FileIO(number, "w" if number else "r", closefd=False)
        buffered = io.BufferedWriter(raw) if number else io.BufferedReader(raw)
        stream = io.TextIOWrapper(buffered, encoding, handling, line_buffering=number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _run_words(words: list[str]) -> int:
    """Run what stands behind `python` on a command line; return its exit code."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, "")
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, "")
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return int(stop.code or 0)
    return 0


if __name__ == "__main__":
    serve()
