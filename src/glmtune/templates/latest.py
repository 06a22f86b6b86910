"""Which rounds of a conversation are left out so that the rest leaves room for an answer."""

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
    """The ids of the messages, without the oldest rounds where all is too long; how many were left out.

    Too long are more tokens than `context` leaves beside the answer: `max_new_tokens`, but at most a quarter
    of the context. All in front of the first question stays, and the last round does, whatever its length.
    `num_left_out`: rounds without which it was short enough before; where more must go, a quarter of the room
    becomes free, for a prompt that begins in another way is computed anew as a whole.
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
    for limit in (most - most // 4, most):
        counts = range(least + 1, last)
        least_fit = bisect_left(counts, True, key=lambda count: len(encode_without(count)) <= limit)
        if least_fit < len(counts):
            return encode_without(counts[least_fit]), counts[least_fit]
    return encode_without(last), last
