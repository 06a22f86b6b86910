"""From the recipe's files to encoded rows, with everything a user should know about them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from glmtune.data.encode import Encoded, Row, encode_examples, encode_prompt
from glmtune.data.example import Example
from glmtune.data.source import read_examples
from glmtune.data.split import split_holdout
from glmtune.errors import ConfigError
from glmtune.evaluation.predictions import Question
from glmtune.recipe import Data
from glmtune.templates import find
from glmtune.workflows.events import FirstRow, Note


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded training and validation rows."""

    train: Encoded
    validation: Encoded
    notes: tuple[Note, ...]


def training_rows(tokenizer: Any, data: Data) -> Rows:
    """Read, split and encode. Raises `ConfigError` and `DataError`."""
    if data.train is None:
        raise ConfigError("data.train: missing", hint="name a training file: data.train=my.json")
    train, validation, split_note = _split(data, data.train)
    notes = [split_note]
    if data.max_rows:
        train = train[: data.max_rows]
    encoded = encode_examples(tokenizer, train, data)
    held_out = encode_examples(tokenizer, validation, data)
    notes += [Note(f"training rows: {line}") for line in encoded.report.lines()]
    for name, report in (("training", encoded.report), ("validation", held_out.report)):
        if report.warning:
            notes.append(Note(f"{name} rows: {report.warning}", is_warning=True))
    return Rows(encoded, held_out, tuple(notes))


def _split(data: Data, path: Path) -> tuple[list[Example], list[Example], Note]:
    examples = read_examples(path, data)
    if data.validation is None:
        train, validation = split_holdout(examples, data)
        text = f"{path}: {len(train)} rows to train on, {len(validation)} held out (seed {data.split_seed})"
        return list(train), list(validation), Note(text)
    validation = read_examples(data.validation, data)
    if data.validation.resolve() == path.resolve():
        text = "the validation file is the training file: its loss will not show forgetting or overfitting"
        return examples, validation, Note(text, is_warning=True)
    text = f"{path}: {len(examples)} rows to train on; {data.validation}: {len(validation)} to validate"
    return examples, validation, Note(text)


def test_questions(tokenizer: Any, data: Data, *, max_rows: int | None) -> tuple[Path, list[Question]]:
    """The rows an evaluation answers: `data.test`, else `data.validation`, else the held-out rows."""
    path = data.test or data.validation or data.train
    if path is None:
        raise ConfigError("data.test: missing", hint="name the file: --data FILE")
    examples: Sequence[Example] = read_examples(path, data)
    if path == data.train and data.test is None:
        examples = split_holdout(list(examples), data)[1]
    examples = examples[:max_rows]
    return path, [Question(i, *encode_prompt(tokenizer, example, data)) for i, example in enumerate(examples)]


def first_row(tokenizer: Any, rows: Sequence[Row]) -> FirstRow:
    """The first training row, decoded."""
    row = rows[0]
    learned = [int(label) for label in row.labels if label != -100]
    return FirstRow(show_ids(tokenizer, row.input_ids.tolist()), show_ids(tokenizer, learned), row.place)


def show_ids(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of the ids with every control token spelled out."""
    format_ = find(tokenizer.template)
    names = {tokenizer.control_id(name): name for name in (*format_.control_tokens, format_.end_of_text)}
    shown: list[str] = []
    for is_control, group in groupby(ids, key=names.__contains__):
        run = list(group)
        shown.append("".join(names[i] for i in run) if is_control else str(tokenizer.decode(run)))
    return "".join(shown)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
