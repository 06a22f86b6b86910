"""A process that renders Jinja templates of others: a line of JSON in, one out. It may be killed any time.

Started by `rendering` by its path: it loads neither glmtune nor torch.
"""

import json
import sys
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

MAX_BYTES = 2**30
"""Of this process's data, where the system can bound that (Linux and most Unixes)."""
MAX_CHARACTERS = 2**24
"""Of one rendered text."""
FAULTS = (
    TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError,
    StopIteration, SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""What a template may raise, and Python of the code that Jinja makes of it."""


def bound_memory() -> None:
    """Let a larger allocation fail, as a `MemoryError`."""
    with suppress(ImportError, ValueError, OSError):  # not on Windows; ValueError: it is lower already
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))


def render_request(asked: dict[str, Any]) -> dict[str, Any]:
    """The rendered texts and the stretches in them that are the assistant's, or what is wrong."""
    try:
        texts, stretches = render_jinja_template(**asked)
    except FAULTS as err:
        return {"error": f"fails: {(str(err) or type(err).__name__).splitlines()[0]}"}
    if max(map(len, texts)) > MAX_CHARACTERS:
        return {"error": f"writes more than {MAX_CHARACTERS:,} characters"}
    return {"texts": texts, "stretches": stretches}


def main() -> None:
    """Answer line by line until there are no more."""
    bound_memory()
    _say("ready")
    for line in sys.stdin:
        try:
            answered = json.dumps(render_request(json.loads(line)))
        except MemoryError:
            answered = json.dumps({"error": f"takes more than {MAX_BYTES // 2**20:,} MiB of memory"})
        _say(answered)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
