"""The waiting line of requests, and the bounds under which the first of them join the batch."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

from glmtune.errors import ConfigError
from glmtune.generate.requests import Answer

MAX_ROWS = 64
"""Default number of rows answered at once."""
MAX_PREFILL_TOKENS = 2048
"""Prompt tokens of one packed prefill; a longer prompt has a pass of its own. Twice as many gain nothing on
a CPU (measured on a Xeon), and cost W8A8 a third more time: malloc gives fp32 buffers that large back to
the system each time.
"""
ROW_TOKENS = 4096
"""Tokens per row in the default of `max_held_tokens`."""


@dataclass(slots=True)
class Line:
    """Requests in order of arrival; none overtakes another.

    The KV cache is a rectangle: each row has as many columns as the longest. So a batch costs its rows times
    the longest text: prefix, prompt and `max_new_tokens`. That room is reserved when a row joins, so that no
    row ever has to leave unfinished. Source: text-generation-inference's max_batch_total_tokens,
    https://huggingface.co/docs/text-generation-inference/reference/launcher.
    """

    max_rows: int
    max_prefill_tokens: int
    max_held_tokens: int
    waiting: deque[Answer] = field(default_factory=deque)

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a bound under which no request could be answered."""
        check_size("max_rows", self.max_rows, 1)
        check_size("max_prefill_tokens", self.max_prefill_tokens, 0)
        check_size("max_held_tokens", self.max_held_tokens, 1)

    def first(self, held: Sequence[Answer]) -> list[Answer]:
        """Return the first waiting requests that may join the batch `held`, in one packed prefill.

        Empty while the first of them must wait. A request above the bound joins an empty batch, alone.
        """
        joining: list[Answer] = []
        left = self.max_prefill_tokens
        longest = max((answer.num_tokens for answer in held), default=0)
        for rows, answer in enumerate(self.waiting, len(held) + 1):
            left -= len(answer.request.prompt)
            longest = max(longest, answer.num_tokens)
            is_full = rows > self.max_rows or (rows > 1 and rows * longest > self.max_held_tokens)
            if is_full or (joining and left < 0):
                break
            joining.append(answer)
        return joining

    def drop(self, number: int) -> None:
        """Remove a request from the line, if it is there."""
        self.waiting = deque(answer for answer in self.waiting if answer.number != number)


def default_max_held_tokens(max_rows: int) -> int:
    """Return the default of `max_held_tokens`. With fewer rows than `MAX_ROWS` each may be longer.

    Raises `ConfigError` as `check_size`.
    """
    check_size("max_rows", max_rows, 1)
    return ROW_TOKENS * max(max_rows, MAX_ROWS)


def check_size(name: str, size: int, least: int) -> None:
    """Raise `ConfigError` for a size that is no whole number, or below `least`."""
    if not isinstance(size, Integral):
        raise ConfigError(f"{name}: must be a whole number, got {size!r:.80}", hint=f"{name}={least} or more")
    if size < least:
        raise ConfigError(f"{name}: must be at least {least}, got {size}", hint=f"{name}={least} or more")
