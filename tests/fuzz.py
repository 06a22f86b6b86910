"""Values and files as nobody means them: how to make them, and a count of what became of them."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from glmtune.errors import LONGEST, GlmtuneError

LONG, DEEP, HUGE = "@long@", "@deep@", "@huge@"
WRITTEN = {LONG: "9" * 5000, DEEP: "[" * 100_000 + "]" * 100_000, HUGE: "1e999"}
"""What stands in a file for these texts: values that Python's json does not write."""
ODD = (
    *(None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, 1e308, float("nan"), LONG, DEEP, HUGE),
    *("", " ", "x", "早上好", "\ud800", "nan", "0", "[]", "{}", '{"a": 1, "a": 2}', "7" * 5000),
    *([], [None], [1], ["a", "b"], [[]], {}, {"a": None}, {"": ""}, {"role": "user"}, "[" * 200 + "]" * 200),
)
"""What may stand in the place of any value."""
KEYS = ("", "x", "\ud800", "早", "step", "tools")
BYTES = (b"", b"\x00", b"\xff", b"{", b"]", b'"', b"\n", b",", b"&x ", b"*x ", b"!!int ", b": ")


def examples(count: int) -> int:
    """So many examples with `--hypothesis-profile=thorough`, else a quarter."""
    return count if settings.get_current_profile_name() == "thorough" else max(count // 4, 5)


def fuzzed(count: int) -> Callable[[Any], Any]:
    """So many cases, the same each time, however long one takes."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside of another, itself first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(path for key, part in inner for path in places(part, (*above, key)))]


def get(value: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for key in path:
        value = value[key]
    return value


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


@st.composite
def odd_values(draw: st.DrawFn, value: Any) -> Any:
    """The value with up to two of its parts swapped for odd ones, left out, or put in."""
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 1, 2]))):
        path, new = draw(st.sampled_from(places(value))), draw(st.sampled_from(ODD))
        part = get(value, path)
        change = draw(st.sampled_from(["swap", "swap", "leave out", "put in"]))
        if change == "swap" or not isinstance(part, dict):
            part = new
        elif change == "put in":
            part = {**part, draw(st.sampled_from(KEYS)): new}
        elif part:
            left_out = draw(st.sampled_from(sorted(part)))
            part = {key: inner for key, inner in part.items() if key != left_out}
        value = put(value, path, part)
    return value


def json_text(value: Any, **layout: Any) -> str:
    """JSON, the odd values written as Python's json does not."""
    text = json.dumps(value, **layout)
    for word, written in WRITTEN.items():
        text = text.replace(json.dumps(word), written)
    return text


@st.composite
def odd_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes, one in three times with some flipped, taken out, doubled, put in or cut off."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.integers(0, 40)))
        flipped = bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in content[at : at + 1])
        new = draw(st.sampled_from([flipped, flipped, content[at:end] * 2, *BYTES]))
        is_cut = draw(st.integers(0, 5)) == 0
        content = content[:at] + new + (b"" if is_cut else content[end:])
    return content


class Outcomes:
    """How many cases were read, and how many refused in words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, read: Callable[[], Any]) -> Any:
        """What a reader gives; None where it refuses, in words that say what to do. All else is a failure."""
        self.counts["tried"] += 1
        try:
            found = read()
        except GlmtuneError as err:
            assert str(err).strip(), "a refusal says why"
            assert err.hint.strip(), f"{err}: a refusal says what to do"
            assert f"{err}{err.hint}".encode(), "a refusal can be printed"
            assert len(str(err)) <= LONGEST
            self.counts["refused"] += 1
            return None
        self.counts["read"] += 1
        return found

    def check(self, *, least: int) -> None:
        """Both counts are worth something."""
        print(dict(self.counts))
        assert min(self.counts["refused"], self.counts["read"]) >= least, dict(self.counts)
