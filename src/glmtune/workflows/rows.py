"""From the recipe's files to encoded rows, with everything a user should know about them.

Reading loads no torch, encoding does: what is wrong with a file is told before that.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.data.example import Example
from glmtune.data.reader import Dataset, read_dataset
from glmtune.data.sources import read_sources
from glmtune.data.split import draw_validation, split_holdout
from glmtune.data.tables import is_hub_name
from glmtune.errors import ConfigError
from glmtune.recipe import Data, Evaluation
from glmtune.recipe.settings import DEFAULT_NEW_TOKENS
from glmtune.workflows.events import FirstRow, Note

if TYPE_CHECKING:
    from glmtune.data.encode import Encoded
    from glmtune.data.row import TrainingRow
    from glmtune.evaluation.predictions import EvaluationRow
    from glmtune.tokenizers.protocol import Tokenizer

FEW_VALIDATION_ROWS = 5
"""Fewer, and their mean loss follows single rows."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Encoded training and validation rows."""

    train: "Encoded"
    validation: "Encoded"
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class SplitRows:
    """The rows of a training as they were read and split."""

    train: Sequence[Example]
    validation: Sequence[Example]
    notes: tuple[Note, ...]


def read_and_split(data: Data) -> SplitRows:
    """Read, split and draw. Raises `ConfigError` and `DataError`."""
    if data.train is None:
        raise ConfigError("data.train: missing", hint="name a training file: data.train=my.json")
    datasets = read_sources(data)
    train, more = _examples(data, datasets), list[Note]()
    if data.validation is None:
        train, held = split_holdout(train, data)
        validation, text = _drawn_of_held(held, data)
    else:
        validation, text, more = _read_validation(data, data.validation)
    used = train[: data.max_rows]
    notes = [_plan(data, len(train), text, validation), *_shares(data, datasets, train)]
    for source, found in zip(data.sources, datasets, strict=True):
        notes += _notes(source.path, found)
    return SplitRows(used, validation, (*notes, *_repeated(data), *more))


def _examples(data: Data, datasets: Sequence[Dataset]) -> list[Example]:
    """The training rows in the order of their sources, of each as many as it may give."""
    pairs = zip(data.sources, datasets, strict=True)
    return [example for source, found in pairs for example in found.examples[: source.max_rows]]


def training_rows(tokenizer: "Tokenizer", data: Data, read: SplitRows | None = None) -> EncodedRows:
    """Encode what was read; read it here where it was not yet. Raises `ConfigError` and `DataError`."""
    from glmtune.data.encode import encode_examples

    read = read or read_and_split(data)
    train, validation, notes = read.train, read.validation, list(read.notes)
    encoded = encode_examples(tokenizer, train, data)
    held_out = encode_examples(tokenizer, validation, data)
    notes += [Note(f"training rows: {line}") for line in encoded.report.lines()]
    for name, part in (("training", encoded), ("validation", held_out)):
        if part.report.warning:
            notes.append(Note(f"{name} rows: {part.report.warning}", is_warning=True))
        notes += _longer_than_context(name, [len(row.input_ids) for row in part.rows], tokenizer, data)
    return EncodedRows(encoded, held_out, tuple(notes))


def _longer_than_context(
    name: str, lengths: Sequence[int], tokenizer: "Tokenizer", data: Data, *, num_new: int = 0
) -> list[Note]:
    """A warning of rows that are longer than all that the model has read before, answers included."""
    context = tokenizer.context
    longer = [length for length in lengths if context is not None and length + num_new > context]
    if context is None or not longer:
        return []
    answers = f", with {num_new:,} tokens of an answer," if num_new else ""
    text = (
        f"{name} rows: {len(longer):,} of {len(lengths):,}{answers} are longer than the {context:,} tokens "
        f"that the model was made for (longest {max(longer) + num_new:,}): expect worse answers there; "
        f"{_shorter(data, context, num_new)}"
    )
    return [Note(text, is_warning=True)]


def _shorter(data: Data, context: int, num_new: int) -> str:
    """The settings that keep rows, or questions and their answers, within the context."""
    pair = data.max_source_tokens, data.max_target_tokens
    if num_new:
        asked = max(context - num_new, context // 2)
        name = "max_tokens" if None in pair else "max_source_tokens"
        return f"data.{name}={asked} evaluate.max_new_tokens={context - asked} fit into it"
    source, target = pair
    if source is None or target is None:
        return f"data.max_tokens={context} cuts them"
    room = context - 2  # the official encodings put up to 2 tokens around the two parts
    asked = room * source // (source + target)
    return f"data.max_source_tokens={asked} data.max_target_tokens={room - asked} cuts them"


def _drawn_of_held(held: Sequence[Example], data: Data) -> tuple[list[Example], str]:
    """The held-out rows that the evaluation loss is taken over, and the words for the plan."""
    validation = draw_validation(held, data)
    text = f"{len(held):,} held out (seed {data.split_seed})"
    if len(validation) < len(held):
        text += f"; the loss is that of {len(validation):,} of them (data.max_validation_rows)"
    return validation, text


def _read_validation(data: Data, path: Path) -> tuple[list[Example], str, list[Note]]:
    """The rows of a validation file that the loss is taken over, the words for the plan, and notes."""
    other = read_dataset(path, data)
    validation, whole = draw_validation(other.examples, data), len(other.examples)
    notes = _notes(path, other)
    if same := next((source.path for source in data.sources if _is_same(path, source.path)), None):
        which = "the training file" if len(data.sources) == 1 else f"a training file, {same}"
        text = f"the validation file is {which}: its loss will not show forgetting or overfitting"
        notes.append(Note(text, is_warning=True))
    text = f"{path}: {whole:,} to validate"
    if len(validation) < whole:
        text = (
            f"{path}: {len(validation):,} of {whole:,} to validate (seed {data.split_seed}; "
            f"data.max_validation_rows={whole} takes all)"
        )
    return validation, text, notes


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names are of one file, or of files with the same content."""
    if full_path(one) == full_path(other) or not (one.is_file() and other.is_file()):
        return full_path(one) == full_path(other)
    return one.stat().st_size == other.stat().st_size and data_hash(one) == data_hash(other)


def _notes(name: str | Path, read: Dataset) -> list[Note]:
    """What reading found, each sentence behind a name that says which rows it means."""
    notes = [Note(f"{name}: {text}") for text in read.notes()]
    return [*notes, *(Note(f"{name}: {text}", is_warning=True) for text in read.warnings())]


def _plan(data: Data, num_rows: int, text: str, validation: Sequence[Example]) -> Note:
    """How many rows are trained, how many validated, and what is to be thought of few."""
    used = min(num_rows, data.max_rows or num_rows)
    some = f"the first {used:,} of {_rows(num_rows)} (data.max_rows)"
    train = some if used < num_rows else _rows(num_rows)
    few = f": the loss of {_rows(len(validation))} tells little, data.validation=FILE names more"
    ending = few if len(validation) < FEW_VALIDATION_ROWS else ""
    return Note(f"{data.train_name}: {train} to train on; {text}{ending}")


def _shares(data: Data, datasets: Sequence[Dataset], train: Sequence[Example]) -> list[Note]:
    """How many rows of each source are trained, where there are several or one gives only some."""
    if not isinstance(data.train, tuple):
        return []
    counts = Counter(example.source for example in train[: data.max_rows])
    notes = []
    for index, source in enumerate(data.sources):
        text = f"{source.path}: {counts[index]:,} of {_rows(len(datasets[index].examples))} to train on"
        why = "" if counts[index] else f": {_starved(data, index, train)}"
        notes.append(Note(f"{text}{why}", is_warning=bool(why)))
    return notes


def _starved(data: Data, index: int, train: Sequence[Example]) -> str:
    """The reason that no row of a source is trained on, and the cure."""
    if not any(example.source == index for example in train):
        return "all are held out"
    item = f"{{path: {data.sources[index].path}, max_rows: ...}}"
    return f"data.max_rows={data.max_rows} ends before them; {item} in data.train limits a file alone"


def _repeated(data: Data) -> list[Note]:
    """A warning for each source that holds the same rows as an earlier one, read in the same way."""
    notes = []
    for one, other in combinations(data.sources, 2):
        if one.reading == other.reading and _is_same(one.path, other.path):
            text = f"{other.path}: the same file as {one.path}: its rows are trained on once more"
            notes.append(Note(text, is_warning=True))
    return notes


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class EvaluationRows:
    """The rows an evaluation answers."""

    paths: tuple[Path, ...]
    """Where they are from."""
    name: str
    """The file's, and whether they are those held out of it: two sets of rows, two folders of answers."""
    questions: "list[EvaluationRow]"
    notes: tuple[Note, ...]


def longest_answer(tokenizer: "Tokenizer", data: Data, evaluate: Evaluation) -> int:
    """Tokens of the longest answer that an evaluation waits for."""
    context = tokenizer.context
    default = DEFAULT_NEW_TOKENS if context is None else min(DEFAULT_NEW_TOKENS, max(context // 2, 1))
    return evaluate.max_new_tokens or data.max_target_tokens or default


def test_questions(tokenizer: "Tokenizer", data: Data, *, num_new: int) -> EvaluationRows:
    """`data.test`, else `data.validation`, else the held-out rows, encoded.

    `num_new`: tokens of the longest answer, for which the context is to have room.
    """
    from glmtune.data.prompts import encode_prompts
    from glmtune.evaluation.predictions import EvaluationRow

    examples, paths, name, notes = _test_rows(data)
    prompts, report = encode_prompts(tokenizer, examples[: data.max_test_rows], data, num_new=num_new)
    notes += [Note(f"test rows: {line}") for line in report.lines()]
    if report.warning:
        notes.append(Note(f"test rows: {report.warning}", is_warning=True))
    lengths = [len(prompt.ids) for prompt in prompts]
    notes += _longer_than_context("test", lengths, tokenizer, data, num_new=num_new)
    questions = [EvaluationRow(i, prompt.ids, prompt.reference) for i, prompt in enumerate(prompts)]
    return EvaluationRows(paths, name, questions, tuple(notes))


def _test_rows(data: Data) -> tuple[Sequence[Example], tuple[Path, ...], str, list[Note]]:
    """The rows to ask, the files that they are from, the name of their evaluation, and notes."""
    if path := data.test or data.validation:
        read = read_dataset(path, data)
        return read.examples, (path,), path.stem, _notes("test rows", read)
    if data.train is None:
        raise ConfigError("data.test: missing", hint="name the file: data.test=FILE")
    datasets = read_sources(data)
    held = split_holdout(_examples(data, datasets), data)[1]
    paths = tuple(source.path for source in data.sources)
    notes = [note for found in datasets for note in _notes("test rows", found)]
    return held, paths, f"{paths[0].stem if len(paths) == 1 else 'train'}-heldout", notes


def first_row(tokenizer: "Tokenizer", rows: "Sequence[TrainingRow]") -> FirstRow:
    """The first training row, decoded."""
    row = rows[0]
    learned = [int(label) for label in row.labels if label != -100]
    return FirstRow(show_ids(tokenizer, row.input_ids.tolist()), show_ids(tokenizer, learned), row.where)


def show_ids(tokenizer: "Tokenizer", ids: Sequence[int]) -> str:
    """Text of the ids with every control token spelled out."""
    format_ = tokenizer.chat_format
    names = {tokenizer.control_id(name): name for name in (*format_.control_tokens, format_.end_of_text)}
    shown: list[str] = []
    for is_control, group in groupby(ids, key=names.__contains__):
        run = list(group)
        shown.append("".join(names[i] for i in run) if is_control else str(tokenizer.decode(run)))
    return "".join(shown)


def full_path(path: Path) -> Path:
    """The path from anywhere; the name of a Hub data set stays as it is."""
    return path if is_hub_name(path) else path.resolve()


def hashed_files(data: Data) -> dict[str, list[Path]]:
    """The files that a run reads, by the names of their hashes in env.json."""
    train = [source.path for source in data.sources]
    files = {"train_sha256": train, "validation_sha256": [data.validation] if data.validation else []}
    return {name: paths for name, paths in files.items() if paths}


def hash_rows(data: Data) -> dict[str, str]:
    """Hashes of the rows, as env.json keeps them; of several sources in their order, with spaces between."""
    return {name: " ".join(map(data_hash, paths)) for name, paths in hashed_files(data).items()}


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
