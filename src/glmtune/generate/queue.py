"""The requests that wait, and which of them may join those that are being answered."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

from glmtune.errors import ConfigError
from glmtune.generate.requests import Answer

MAX_ROWS = 64
"""Rows that are answered at once unless more are asked for."""
MAX_PREFILL_TOKENS = 2048
"""Prompt tokens of one packed pass; a longer prompt has a pass of its own. Twice as many gain nothing
on a CPU (measured on a Xeon), and cost W8A8 a third more time: fp32 too large for malloc to keep.
"""
ROW_TOKENS = 4096
"""So long may all rows become at once: `max_held_tokens` is so much for each, unless it is given."""


@dataclass(slots=True)
class Line:
    """Requests in the order in which they came; none overtakes another.

    What is held has the shape of a rectangle: as many columns for each row as for the longest. So the tokens
    that count are the rows times the longest text, prefix and prompt and the longest answer that is allowed:
    a row that has joined is never put back. Source of reserving: text-generation-inference's
    max_batch_total_tokens, https://huggingface.co/docs/text-generation-inference/reference/launcher.
    """

    max_rows: int
    max_prefill_tokens: int
    max_held_tokens: int
    waiting: deque[Answer] = field(default_factory=deque)

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a bound under which nothing is answered."""
        check_size("max_rows", self.max_rows, 1)
        check_size("max_prefill_tokens", self.max_prefill_tokens, 0)
        check_size("max_held_tokens", self.max_held_tokens, 1)

    def first(self, held: Sequence[Answer]) -> list[Answer]:
        """Those that join what is held, in one packed pass; none while the first of them must wait.

        One that is too large for the bound is answered all the same, alone.
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
        """Take a request out of the line, if it is there."""
        self.waiting = deque(answer for answer in self.waiting if answer.number != number)


def held_by_default(max_rows: int) -> int:
    """`max_held_tokens` where none is given: fewer rows than `MAX_ROWS` may be the longer.

    Raises `ConfigError` as `check_size`.
    """
    check_size("max_rows", max_rows, 1)
    return ROW_TOKENS * max(max_rows, MAX_ROWS)


def check_size(name: str, size: int, least: int) -> None:
    """Raise `ConfigError` for a size that is no whole number, or below the least."""
    if not isinstance(size, Integral):
        raise ConfigError(f"{name}: must be a whole number, got {size!r:.80}", hint=f"{name}={least} or more")
    if size < least:
        raise ConfigError(f"{name}: must be at least {least}, got {size}", hint=f"{name}={least} or more")
