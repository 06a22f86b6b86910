"""Render a folder's own, untrusted Jinja template in a process with limited memory and time.

Inside a process a template cannot be limited: an expression that repeats a text 10 to the 9th times is a
single step.
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
"""The most seconds of a call, on any machine: 10,000 turns take less than one."""
PARTS = (
    "{% for part in messages %}{% if part.role == 'learned' %}{% generation %}{{ part.content }}"
    "{% endgeneration %}{% else %}{{ part.content }}{% endif %}{% endfor %}"
)
"""The template that joins rendered parts, for transformers to go on from; it marks the learned ones."""
_HINT = "glmtune.encode_messages renders by the format's own rules, without the template"


class _Renderer:
    """The process of `apart`, started on first use and again after it was killed."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, line: str) -> str:
        """Send a request and return the answer's line, empty if none came in time or the process died."""
        with self.lock:
            process = self.process = self.process or _start()
            assert process.stdin
            assert process.stdout
            timer = Timer(MAX_SECONDS, process.kill)
            timer.start()
            answer = ""
            try:
                with suppress(OSError):  # the process has ended
                    process.stdin.write(line + "\n")
                    process.stdin.flush()
                received = process.stdout.readline()
                answer = received if received.endswith("\n") else ""  # cut off: killed while it wrote
            finally:
                timer.cancel()
                if not answer:  # a late answer would be taken for that of the next request
                    process.kill()
                    process.communicate()
                    self.process = None
            return answer


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
    process.stdout.readline()  # "ready": from now on the time is the template's
    return process


@cache
def _renderer(_process_id: int) -> _Renderer:
    """Return the renderer of this process: a fork must not share its parent's pipes."""
    return _Renderer()


def render_apart(
    where: str, conversations: Sequence[Sequence[Mapping[str, Any]]], **options: object
) -> list[list[dict[str, str]]]:
    """Render conversations in the other process; return each as messages that `PARTS` joins to its text.

    `options`: those of transformers' `render_jinja_template`. Raises ConfigError for a template that does not
    end, takes too much memory, or fails; the message begins with `where`.
    """
    options["conversations"] = [
        [{key: value for key, value in message.items() if value is not None} for message in messages]
        for messages in conversations
    ]
    line = _renderer(os.getpid()).ask(json.dumps(options, default=to_jsonable_python))
    answer = json.loads(line) if line else {"error": f"is not done after {MAX_SECONDS:g} s, or too large"}
    if "error" in answer:
        raise ConfigError(f"{where}: its chat_template {answer['error']}", hint=_HINT)
    texts = answer["texts"]
    rendered = []
    for text, stretches in zip(texts, answer["stretches"] or [[] for _ in texts], strict=True):
        # the assistant's stretches (start, end) alternate with the text between them
        cuts = [0, *(end for stretch in stretches for end in stretch), len(text)]
        spans = zip(("given", "learned") * len(cuts), cuts, cuts[1:], strict=False)
        rendered.append([{"role": role, "content": text[start:end]} for role, start, end in spans])
    return rendered
