"""Warnings of turns in an odd order, which are read as they stand: a number, and the first row."""

from collections.abc import Sequence
from itertools import pairwise

from glmtune.data.example import Example
from glmtune.errors import DataError

SPEAKERS = {"user", "assistant"}
ASKING = {"user", "observation"}


def count_unasked(example: Example) -> int:
    """Return the number of a conversation's learned answers without a question before them."""
    roles = [message.role for message in example.messages]
    # an observation counts too: a tool's result is something to answer
    start = next((i for i, role in enumerate(roles) if role in ASKING), len(roles))
    return sum(message.role == "assistant" and message.loss for message in example.messages[:start])


def has_doubled_turns(example: Example) -> bool:
    """True if the user or the assistant has two turns in a row."""
    roles = [message.role for message in example.messages]
    return any(one == other and one in SPEAKERS for one, other in pairwise(roles))


def warn_of_unasked(examples: Sequence[Example]) -> str:
    """Return a warning of answers without a question before them, empty if there are none."""
    counts = {example.where: count for example in examples if (count := count_unasked(example))}
    return count_and_first("answers with no question before them, learned all the same", counts)


def note_doubled_turns(examples: Sequence[Example]) -> str:
    """Return a note on rows in which a speaker has two turns in a row, empty if there are none."""
    counts = {example.where: 1 for example in examples if has_doubled_turns(example)}
    return count_and_first("rows in which one speaker has two turns in a row, read as they stand", counts)


def check_asked(examples: Sequence[Example]) -> None:
    """Raise `DataError` if no learned answer of any row has a question before it."""
    num_learned = [sum(m.role == "assistant" and m.loss for m in example.messages) for example in examples]
    if any(num_learned) and num_learned == [count_unasked(example) for example in examples]:
        raise DataError(
            f"{examples[0].where}: an answer with no question before it, here and in every other row",
            hint="begin each dialogue with the user's turn; to learn texts alone, write each with an empty "
            'question: {"prompt": "", "response": "..."}',
        )


def count_and_first(what: str, counts: dict[str, int]) -> str:
    """Return a line with the sum of the counts and the first place, empty if there are none."""
    return f"{what}: {sum(counts.values()):,} (first in {next(iter(counts))})" if counts else ""
