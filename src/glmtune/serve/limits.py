"""Bounds of a server: what it holds at once, and the largest request that it reads."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """The most that one server takes. A request above a bound is refused with an error that names it."""

    max_rows: int = 64
    """Answers written at once; further ones wait."""
    max_waiting: int = 256
    """Answers that wait; above it the server says 429 at once."""
    max_new_tokens: int = 4096
    """Longest answer in tokens: of a request that asks for more, or for no length."""
    max_held_tokens: int | None = None
    """Tokens in the KV cache, each answer counted at its longest; None: 4,096 for each row."""
    max_body_bytes: int = 8 * 2**20
    """Largest request body."""
    max_answers: int = 16
    """Answers to one request, `n`."""
    body_timeout_s: float = 60.0
    """Time in which a request's body must arrive."""
    send_timeout_s: float = 60.0
    """Time in which a client must take a piece of an answer."""

    @property
    def max_open(self) -> int:
        """Answers that are written or wait."""
        return self.max_rows + self.max_waiting
