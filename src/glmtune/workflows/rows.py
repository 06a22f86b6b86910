"""From the recipe's files to encoded rows, with everything a user should know about them.

Reading loads no torch, encoding does: what is wrong with a file is told before that.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.data.example import Example
from glmtune.data.source import read_dataset
from glmtune.data.split import split_holdout
from glmtune.data.tables import is_hub_name
from glmtune.errors import ConfigError
from glmtune.family import FAMILIES, identify_family
from glmtune.files import read_json_if_there
from glmtune.recipe import Data
from glmtune.templates import find
from glmtune.workflows.events import FirstRow, Note

if TYPE_CHECKING:
    from glmtune.data.encode import Encoded, Row
    from glmtune.evaluation.predictions import Question


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded training and validation rows."""

    train: "Encoded"
    validation: "Encoded"
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """The rows of a training as they were read and split."""

    train: Sequence[Example]
    validation: Sequence[Example]
    notes: tuple[Note, ...]


def read_rows(data: Data) -> Read:
    """Read and split. Raises `ConfigError` and `DataError`."""
    if data.train is None:
        raise ConfigError("data.train: missing", hint="name a training file: data.train=my.json")
    train, validation, notes = _split(data, data.train)
    return Read(train[: data.max_rows], validation, tuple(notes))


def training_rows(tokenizer: Any, data: Data, read: Read | None = None) -> Rows:
    """Encode what was read; read it here where it was not yet. Raises `ConfigError` and `DataError`."""
    from glmtune.data.encode import encode_examples

    read = read or read_rows(data)
    train, validation, notes = read.train, read.validation, list(read.notes)
    encoded = encode_examples(tokenizer, train, data)
    held_out = encode_examples(tokenizer, validation, data)
    notes += [Note(f"training rows: {line}") for line in encoded.report.lines()]
    for name, part in (("training", encoded), ("validation", held_out)):
        if part.report.warning:
            notes.append(Note(f"{name} rows: {part.report.warning}", is_warning=True))
        notes += _longer_than_context(name, [len(row.input_ids) for row in part.rows], tokenizer)
    return Rows(encoded, held_out, tuple(notes))


def _longer_than_context(name: str, lengths: Sequence[int], tokenizer: Any) -> list[Note]:
    """A warning of rows that are longer than all that the model has read before."""
    folder = Path(tokenizer.vocab_file).parent
    context = read_json_if_there(folder / "config.json").get(
        FAMILIES[identify_family(folder).family].context_key
    )
    longer = [length for length in lengths if isinstance(context, int) and length > context]
    if not longer:
        return []
    text = (
        f"{name} rows: {len(longer):,} of {len(lengths):,} are longer than the {context:,} tokens that the "
        f"model was made for (longest {max(longer):,}); data.max_tokens={context} cuts them"
    )
    return [Note(text, is_warning=True)]


def _split(data: Data, path: Path) -> tuple[list[Example], list[Example], list[Note]]:
    read = read_dataset(path, data)
    notes = [Note(f"{path}: {text}") for text in read.notes()]
    if data.validation is None:
        train, validation = split_holdout(read.examples, data)
        text = f"{path}: {len(train)} rows to train on, {len(validation)} held out (seed {data.split_seed})"
        return list(train), list(validation), [Note(text), *notes]
    other = read_dataset(data.validation, data)
    notes += [Note(f"{data.validation}: {text}") for text in other.notes()]
    if full_path(data.validation) == full_path(path):
        text = "the validation file is the training file: its loss will not show forgetting or overfitting"
        notes.append(Note(text, is_warning=True))
    text = (
        f"{path}: {len(read.examples)} rows to train on; {data.validation}: {len(other.examples)} to validate"
    )
    return read.examples, other.examples, [Note(text), *notes]


@dataclass(frozen=True, slots=True)
class Questions:
    """The rows an evaluation answers."""

    path: Path
    questions: "list[Question]"
    notes: tuple[Note, ...]


def test_questions(tokenizer: Any, data: Data, *, max_rows: int | None) -> Questions:
    """`data.test`, else `data.validation`, else the held-out rows, encoded."""
    from glmtune.data.encode import encode_prompts
    from glmtune.evaluation.predictions import Question

    path = data.test or data.validation or data.train
    if path is None:
        raise ConfigError("data.test: missing", hint="name the file: --data FILE")
    read = read_dataset(path, data)
    examples: Sequence[Example] = read.examples
    if path == data.train and data.test is None:
        examples = split_holdout(list(examples), data)[1]
    prompts, report = encode_prompts(tokenizer, examples[:max_rows], data)
    notes = [Note(f"test rows: {line}") for line in (*read.notes(), *report.lines())]
    if report.warning:
        notes.append(Note(f"test rows: {report.warning}", is_warning=True))
    questions = [Question(i, prompt.ids, prompt.reference) for i, prompt in enumerate(prompts)]
    return Questions(path, questions, tuple(notes))


def first_row(tokenizer: Any, rows: "Sequence[Row]") -> FirstRow:
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


def full_path(path: Path) -> Path:
    """The path from anywhere; the name of a Hub data set stays as it is."""
    return path if is_hub_name(path) else path.resolve()


def data_hash(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files; of a Hub data set its name is all there is."""
    if is_hub_name(path):
        return str(path)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
