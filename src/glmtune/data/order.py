"""Turns in an odd order: they are read as they stand, counted, and the first is named."""

from collections.abc import Sequence
from itertools import pairwise

from glmtune.data.example import Example
from glmtune.errors import DataError

SPEAKERS = {"user", "assistant"}
ASKING = {"user", "observation"}


def num_unasked(example: Example) -> int:
    """The learned answers of a row with no question before them."""
    roles = [message.role for message in example.messages]
    start = next((i for i, role in enumerate(roles) if role in ASKING), len(roles))
    return sum(message.role == "assistant" and message.loss for message in example.messages[:start])


def has_doubled(example: Example) -> bool:
    """Whether a user or the assistant has two turns in a row."""
    roles = [message.role for message in example.messages]
    return any(one == other and one in SPEAKERS for one, other in pairwise(roles))


def unasked(examples: Sequence[Example]) -> str:
    """The words that warn of answers to nothing, none where there are none."""
    counts = {example.where: count for example in examples if (count := num_unasked(example))}
    return _found("answers with no question before them, learned all the same", counts)


def doubled(examples: Sequence[Example]) -> str:
    """The words that name rows in which a speaker has two turns in a row, none where there are none."""
    counts = {example.where: 1 for example in examples if has_doubled(example)}
    return _found("rows in which one speaker has two turns in a row, read as they stand", counts)


def check_asked(examples: Sequence[Example]) -> None:
    """Raise `DataError` where no learned answer of any row has a question before it."""
    learned = [sum(m.role == "assistant" and m.loss for m in example.messages) for example in examples]
    if any(learned) and learned == [num_unasked(example) for example in examples]:
        raise DataError(
            f"{examples[0].where}: an answer with no question before it, here and in every other row",
            hint="begin each dialogue with the user's turn; to learn texts alone, write each with an empty "
            'question: {"prompt": "", "response": "..."}',
        )


def _found(what: str, counts: dict[str, int]) -> str:
    return f"{what}: {sum(counts.values()):,} (first in {next(iter(counts))})" if counts else ""
