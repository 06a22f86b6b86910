"""Odd and damaged files: whatever stands in one, it is read or refused with an error of ours."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from glmtune.errors import GlmtuneError

FEW, MANY = 100, 3000
"""Cases in the fast and in the slow suite."""

_EXTRA_BYTES = 6 * 2**30  # of addresses, most of which PyTorch's threads and mapped files only reserve
_LONGEST_S = 1800

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 3, 7, 10**3, 10**6, 10**12, 2**63, 10**400, 0.5, -0.5, 1e308,
    float("nan"), float("inf"), "", "x", "7", "float16", "你", "\0", "a" * 5000, "../x", "(", "(a+)+$",
    [], [1], ["a"], [[1]], [None], [-1], ["1", 2], {}, {"a": 1}, {"a": {"b": [1]}}, {"0": "a", "1": 5},
    {"rope_theta": 0}, {"rope_type": "yarn"}, {"rope_theta": "x", "rope_type": "default"},
    {"rope_theta": float("nan"), "rope_type": "default"}, {"type": "linear", "factor": "x"},
    {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 5},
    {"full_attention": {"rope_theta": 1}}, ["full_attention"], ["sliding_attention", "full_attention"],
    {"quant_method": 5},
]  # fmt: skip
"""Values of JSON that some key somewhere does not expect."""

VALUES = st.sampled_from(HOSTILE) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@dataclass
class Tally:
    """How many cases there were, and what came of them."""

    tried: int = 0
    refused: int = 0
    read: int = 0

    def take(self, run: Callable[[], object]) -> object | None:
        """What a case gives; None where it is refused with a message of one line or more."""
        self.tried += 1
        try:
            found = run()
        except GlmtuneError as err:
            self.refused += 1
            assert str(err).strip()
            assert "weights_only" not in f"{err} {err.hint}"
            return None
        self.read += 1
        return found

    def require(self, *, refused: int, read: int) -> None:
        """At least so many of each kind."""
        print(f"tried {self.tried}, refused {self.refused}, read {self.read}")
        assert self.refused + self.read == self.tried
        assert self.refused >= refused
        assert self.read >= read


@contextmanager
def bounds() -> Iterator[None]:
    """Memory and time that nothing in here needs."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + _EXTRA_BYTES, before[1]))
    old = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(_LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _hangs(*_: object) -> None:
    raise AssertionError("it hangs")
