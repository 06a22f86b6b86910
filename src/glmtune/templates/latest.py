"""Fits a conversation into the model's context: the oldest rounds are left out."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]


def leave_out_oldest(
    messages: Messages,
    encode: Callable[[Messages], list[int]],
    *,
    context: int | None,
    max_new_tokens: int,
    num_left_out: int = 0,
) -> tuple[list[int], int]:
    """Encode the messages without the oldest rounds, if all are too long; return (ids, rounds left out).

    The prompt may have `context` tokens less room for the answer: `max_new_tokens`, but at most a quarter of
    the context. Turns before the first question and the last round always stay. `num_left_out`: rounds left
    out for the question before. If more must go, a quarter of the prompt's room is freed at once: a prompt
    with another beginning needs a whole prefill, so this should be rare.
    """
    starts = [index for index, message in enumerate(messages) if message["role"] == "user"]
    last = len(starts) - 1
    least = min(num_left_out, max(last, 0))

    def encode_without(count: int) -> list[int]:
        return encode([*messages[: starts[0]], *messages[starts[count] :]] if count else messages)

    ids = encode_without(least)
    most = len(ids) if context is None else context - min(max_new_tokens, context // 4)
    if len(ids) <= most or least >= last:
        return ids, least
    for limit in (most - most // 4, most):  # first with a quarter to spare, else just short enough
        counts = range(least + 1, last)
        least_fit = bisect_left(counts, True, key=lambda count: len(encode_without(count)) <= limit)
        if least_fit < len(counts):
            return encode_without(counts[least_fit]), counts[least_fit]
    return encode_without(last), last
