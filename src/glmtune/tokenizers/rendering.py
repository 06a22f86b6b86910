"""A folder's own Jinja template, rendered for those who ask for it: by another process, so that it ends.

What an expression of a template builds cannot be bounded inside a process: a text times 10 to the 9th is one
step. A process can be bounded, in memory and in time.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from threading import Lock, Timer
from typing import Any

from pydantic_core import to_jsonable_python

from glmtune.errors import ConfigError
from glmtune.tokenizers import apart

MAX_SECONDS = 20.0
"""Of one call, on any machine: 10,000 turns take less than one."""
PARTS = (
    "{% for part in messages %}{% if part.role == 'learned' %}{% generation %}{{ part.content }}"
    "{% endgeneration %}{% else %}{{ part.content }}{% endif %}{% endfor %}"
)
"""The template of what is rendered already: transformers goes on from there."""
_HINT = "glmtune.encode_messages renders by the format's own rules, without the template"


class _Renderer:
    def __init__(self) -> None:
        self.lock = Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, line: str) -> str:
        """The answer's line; empty where none came in time, or the process has died of the question."""
        with self.lock:
            process = self.process = self.process or _start()
            timer = Timer(MAX_SECONDS, process.kill)
            timer.start()
            answered = ""
            try:
                answered = _exchange(process, line)
            finally:
                timer.cancel()
                if not answered:
                    process.kill()
                    process.communicate()
                    self.process = None
            return answered


def _start() -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-P", apart.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout
    process.stdout.readline()  # it is there: from now on the time is the template's
    return process


def _exchange(process: "subprocess.Popen[str]", line: str) -> str:
    assert process.stdin
    assert process.stdout
    with suppress(OSError):  # it has ended
        process.stdin.write(line + "\n")
        process.stdin.flush()
    answered = process.stdout.readline()
    return answered if answered.endswith("\n") else ""


@cache
def _renderer(_: int) -> _Renderer:
    """One a process: a fork must not talk into its parent's."""
    return _Renderer()


def render_apart(
    where: str, conversations: Sequence[Sequence[Mapping[str, Any]]], **asked: Any
) -> list[list[dict[str, str]]]:
    """Each rendered conversation, as messages of which `PARTS` makes the same text.

    `asked`: options of transformers' `render_jinja_template`. Raises ConfigError where the template does not
    end, takes too much memory, or fails.
    """
    asked["conversations"] = [
        [{key: value for key, value in message.items() if value is not None} for message in messages]
        for messages in conversations
    ]
    line = _renderer(os.getpid()).ask(json.dumps(asked, default=to_jsonable_python))
    answer = json.loads(line) if line else {"error": f"is not done after {MAX_SECONDS:g} s, or too large"}
    if "error" in answer:
        raise ConfigError(f"{where}: its chat_template {answer['error']}", hint=_HINT)
    stretches = answer["stretches"] or [[] for _ in answer["texts"]]
    return [list(_parts(*pair)) for pair in zip(answer["texts"], stretches, strict=True)]


def _parts(text: str, stretches: Sequence[tuple[int, int]]) -> list[dict[str, str]]:
    ends = [0, *(end for stretch in stretches for end in stretch), len(text)]
    roles = ("given", "learned") * len(ends)
    return [
        {"role": role, "content": text[start:end]}
        for role, start, end in zip(roles, ends, ends[1:], strict=False)
    ]
