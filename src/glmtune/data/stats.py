"""Statistics of a file of rows: counts of answers, tools, thoughts, duplicates, and lengths in characters."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """Names of the row formats found, the most frequent first."""
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
    """Dialogues whose turns after the last answer were left out."""
    unanswered: int
    """Dialogues left out because they have no answer."""
    empty: tuple[str, ...]
    """Places of the rows left out by `data.empty=skip`."""
    repeated: int
    """Rows whose whole conversation occurs earlier in the file."""
    contradicting: int
    """Rows whose question occurs earlier in the file, but not with this answer."""
    characters: Lengths
    """Characters of all texts of a row."""
    answer_characters: Lengths
    """Characters of a row's last answer."""


def measure_file(path: Path, settings: Data) -> tuple[Stats, Dataset]:
    """Read a file and return its statistics and its rows. Raises `DataError` as `read_dataset` does."""
    dataset = read_dataset(path, settings)
    rows = [example.messages for example in dataset.examples]
    repeated, contradicting = _count_duplicates(dataset.examples)
    has_thought = [any(m.role == "assistant" and m.split_thought()[0].strip() for m in row) for row in rows]
    stats = Stats(
        rows=len(rows),
        format=dataset.format,
        answers=Lengths.of([sum(message.role == "assistant" for message in row) for row in rows]),
        with_history=sum(sum(message.role == "user" for message in row) > 1 for row in rows),
        with_system=sum(any(m.role == "system" and m.content.strip() for m in row) for row in rows),
        with_tools=sum(any(message.tools for message in row) for row in rows),
        with_calls=sum(any(message.is_call for message in row) for row in rows),
        with_thoughts=sum(has_thought),
        unlearned=sum(any(m.role == "assistant" and not m.loss for m in row) for row in rows),
        empty_questions=dataset.num_empty_questions,
        open_thoughts=dataset.num_open_thoughts,
        cut=dataset.num_cut,
        unanswered=dataset.num_unanswered,
        empty=dataset.empty,
        repeated=repeated,
        contradicting=contradicting,
        characters=Lengths.of([sum(map(_num_characters, row)) for row in rows]),
        answer_characters=Lengths.of([_num_characters(row[-1]) for row in rows]),
    )
    return stats, dataset


def _num_characters(message: Message) -> int:
    """Return the characters of a turn; arguments of its calls count as JSON."""
    calls = (call.name + json.dumps(call.arguments, ensure_ascii=False) for call in message.calls)
    return sum(map(len, (message.content, message.metadata, message.thought or "", *calls)))


def _count_duplicates(examples: Sequence[Example]) -> tuple[int, int]:
    """Return the numbers of rows that repeat an earlier row, and that answer its question otherwise."""
    answers: dict[str, set[str]] = {}
    repeated = contradicting = 0
    for example in examples:
        turns = []
        for message in example.messages:
            # without the ids of calls, which differ from row to row
            calls = [(call.name, call.arguments) for call in message.calls]
            facts = {**asdict(message), "calls": calls, "call_id": None}
            turns.append(json.dumps(facts, ensure_ascii=False, sort_keys=True, default=str))
        *question, answer = turns
        known_answers = answers.setdefault("\n".join(question), set())
        # a row that repeats one of several answers to its question is a repetition, not another answer
        repeated += answer in known_answers
        contradicting += bool(known_answers) and answer not in known_answers
        known_answers.add(answer)
    return repeated, contradicting
