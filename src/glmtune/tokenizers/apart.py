"""A process that renders untrusted Jinja chat templates: a line of JSON in, a line out; it may be killed.

`rendering` starts it by its path, so that it loads neither glmtune nor torch.
"""

import json
import sys
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

MAX_BYTES = 2**30
"""The most memory of this process, where the system can limit it (Linux and most Unixes)."""
MAX_CHARACTERS = 2**24
"""The most characters of a rendered text."""
FAULTS = (
    TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError,
    StopIteration, SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""The errors that a template may raise, or Python in the code that Jinja compiles it to."""


def bound_memory() -> None:
    """Limit the process's memory to `MAX_BYTES`: an allocation beyond raises MemoryError."""
    with suppress(ImportError, ValueError, OSError):  # not on Windows; ValueError: it is lower already
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))


def render_request(request: dict[str, Any]) -> dict[str, Any]:
    """Render a request, keyword arguments of transformers' `render_jinja_template`.

    Return the `texts` and the assistant's `stretches` in them, or an `error`.
    """
    try:
        texts, stretches = render_jinja_template(**request)
    except FAULTS as err:
        return {"error": f"fails: {(str(err) or type(err).__name__).splitlines()[0]}"}
    if max(map(len, texts)) > MAX_CHARACTERS:
        return {"error": f"writes more than {MAX_CHARACTERS:,} characters"}
    return {"texts": texts, "stretches": stretches}


def main() -> None:
    """Answer requests line by line until stdin ends."""
    bound_memory()
    _write_line("ready")
    for line in sys.stdin:
        try:
            answer = json.dumps(render_request(json.loads(line)))
        except MemoryError:  # also of `dumps`: a small text may have many escapes
            answer = json.dumps({"error": f"takes more than {MAX_BYTES // 2**20:,} MiB of memory"})
        _write_line(answer)


def _write_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
