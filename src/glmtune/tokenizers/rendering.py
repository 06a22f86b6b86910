"""A folder's own Jinja template, rendered for those who ask for it: what it does is counted, so it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from types import FrameType
from typing import Any

from jinja2 import TemplateError

from glmtune.errors import ConfigError, first_line

MAX_STEPS = 1_000_000
"""Lines of a compiled template that are run at most: a conversation of 1,000 turns takes some 30,000."""
_COMPILED = "<template>"
"""The file of a compiled template, by Jinja's own name."""


@contextmanager
def bounded_rendering(place: str) -> Iterator[None]:
    """Inside, a template is rendered. Raises ConfigError where it does not end, or fails.

    What one expression builds is not counted: a text times 10 to the 9th takes the memory that it takes.
    """
    left = MAX_STEPS

    def count(_: FrameType, event: str, __: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left < 0:
            raise ConfigError(f"{place}: its chat_template is not done after {MAX_STEPS:,} steps", hint=_HINT)
        return count

    def enter(frame: FrameType, _: str, __: Any) -> Any:
        return count if frame.f_code.co_filename == _COMPILED else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    except Exception as err:
        if not (isinstance(err, TemplateError) or _is_raised_inside(err)) or isinstance(err, ConfigError):
            raise
        raise ConfigError(f"{place}: its chat_template fails: {first_line(err)}", hint=_HINT) from err
    finally:
        sys.settrace(before)


def _is_raised_inside(err: Exception) -> bool:
    return any(frame.f_code.co_filename == _COMPILED for frame, _ in walk_tb(err.__traceback__))


_HINT = "glmtune.encode_messages renders by the format's own rules, without the template"
