"""What a file of rows holds, in numbers."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glmtune.data.example import Example
from glmtune.data.lengths import Lengths
from glmtune.data.reader import Dataset, read_dataset
from glmtune.recipe.settings import Data
from glmtune.templates import Message


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts over the rows of a file; a row is one conversation."""

    rows: int
    format: str
    """Name of the row format found."""
    answers: Lengths
    """Assistant turns of a row."""
    with_history: int
    """Rows with more than one answer."""
    with_system: int
    with_tools: int
    with_calls: int
    with_thoughts: int
    """Rows with a thought beside an answer or inside it."""
    unlearned: int
    """Rows with an answer that is not learned."""
    empty_questions: int
    open_thoughts: int
    """Answers with a <think> inside that never closes."""
    cut: int
    """Dialogues that lost what came after their last answer."""
    unanswered: int
    """Dialogues left out: nobody answers."""
    repeated: int
    """Rows whose whole conversation stood earlier in the file."""
    contradicting: int
    """Rows whose question stood earlier in the file with another answer."""
    characters: Lengths
    """All texts of a row."""
    answer_characters: Lengths
    """The last answer of a row."""


def measure_file(path: Path, settings: Data) -> tuple[Stats, Dataset]:
    """Read a file and count what it holds; give the rows too. Raises `DataError` as reading does."""
    dataset = read_dataset(path, settings)
    rows = [example.messages for example in dataset.examples]
    repeated, contradicting = _duplicates(dataset.examples)
    stats = Stats(
        rows=len(rows),
        format=dataset.format,
        answers=Lengths.of([sum(message.role == "assistant" for message in row) for row in rows]),
        with_history=sum(sum(message.role == "user" for message in row) > 1 for row in rows),
        with_system=sum(any(m.role == "system" and m.content.strip() for m in row) for row in rows),
        with_tools=sum(any(message.tools for message in row) for row in rows),
        with_calls=sum(any(message.is_call for message in row) for row in rows),
        with_thoughts=sum(any(_has_thought(message) for message in row) for row in rows),
        unlearned=sum(any(m.role == "assistant" and not m.loss for m in row) for row in rows),
        empty_questions=dataset.num_empty_questions,
        open_thoughts=dataset.num_open_thoughts,
        cut=dataset.num_cut,
        unanswered=dataset.num_unanswered,
        repeated=repeated,
        contradicting=contradicting,
        characters=Lengths.of([sum(map(_num_characters, row)) for row in rows]),
        answer_characters=Lengths.of([_num_characters(row[-1]) for row in rows]),
    )
    return stats, dataset


def _has_thought(message: Message) -> bool:
    return message.role == "assistant" and bool(message.split_thought()[0].strip())


def _num_characters(message: Message) -> int:
    """Characters of a turn; those of its calls' arguments as JSON."""
    called = (call.name + json.dumps(call.arguments, ensure_ascii=False) for call in message.calls)
    return sum(map(len, (message.content, message.metadata, message.thought or "", *called)))


def _without_ids(message: Message) -> dict[str, Any]:
    calls = [(call.name, call.arguments) for call in message.calls]
    return {**asdict(message), "calls": calls, "call_id": None}


def _duplicates(examples: Sequence[Example]) -> tuple[int, int]:
    """How many rows repeat an earlier row, and how many its question with another answer."""
    answers: dict[str, set[str]] = {}
    repeated = contradicting = 0
    for example in examples:
        *asked, answer = (
            json.dumps(_without_ids(message), ensure_ascii=False, sort_keys=True, default=str)
            for message in example.messages
        )
        known = answers.setdefault("\n".join(asked), set())
        repeated += answer in known
        contradicting += bool(known) and answer not in known
        known.add(answer)
    return repeated, contradicting
