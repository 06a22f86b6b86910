"""Read, split and encode the rows of a recipe's data files, with notes on everything a user should know.

Reading and splitting load no torch, so a mistake in a file is an error before torch is loaded; encoding does.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
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
"""Least number of validation rows without a warning; the mean loss of fewer follows single rows."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Encoded training and validation rows."""

    train: "Encoded"
    validation: "Encoded"
    notes: tuple[Note, ...]
    num_empty: Mapping[str, int]
    """As of `SplitRows`."""
    num_several: int
    """Training rows of several rounds."""


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Training and validation rows, read and split but not yet encoded."""

    train: Sequence[Example]
    validation: Sequence[Example]
    notes: tuple[Note, ...]
    num_empty: Mapping[str, int]
    """Rows of each file that `data.empty=skip` left out, if any; env.json keeps them."""


def read_and_split(data: Data) -> SplitRows:
    """Read the data files, split off the validation rows. Raises `ConfigError` and `DataError`."""
    if data.train is None:
        raise ConfigError("data.train: missing", hint="name a training file: data.train=my.json")
    datasets = read_sources(data)
    _check_fill(data, datasets)
    train, validation_notes = _join_sources(data, datasets), list[Note]()
    read = list(zip((source.path for source in data.sources), datasets, strict=True))
    validation: Sequence[Example]
    if data.validation is None:
        # before data.max_rows is applied: fewer training rows leave the held-out rows the same
        train, held_out = split_holdout(train, data)
        validation = draw_validation(held_out, data)
        text = f"{len(held_out):,} held out (seed {data.split_seed})"
        if len(validation) < len(held_out):
            text += f"; the loss is that of {len(validation):,} of them (data.max_validation_rows)"
    else:
        dataset = read_dataset(data.validation, data)
        read.append((data.validation, dataset))
        validation, text, validation_notes = _validation_rows(data, data.validation, dataset)
    used = train[: data.max_rows]
    line = _plan_line(data, len(used), len(train), len(validation), text)
    notes = [Note(line), *_source_counts(data, datasets, train)]
    for source, dataset in zip(data.sources, datasets, strict=True):
        notes += _notes(source.path, dataset)
    for one, other in combinations(data.sources, 2):
        if one.reading == other.reading and _is_same(one.path, other.path):
            twice = f"{other.path}: the same file as {one.path}: its rows are trained on once more"
            notes.append(Note(twice, is_warning=True))
    num_empty = {str(path): len(dataset.empty) for path, dataset in read if dataset.empty}
    return SplitRows(used, validation, (*notes, *validation_notes), num_empty)


def _check_fill(data: Data, datasets: Sequence[Dataset]) -> None:
    """Raise `ConfigError` for a word of `data.fill` whose placeholder no training row has."""
    used = {name for dataset in datasets for name in dataset.filled}
    if unused := next((name for name in data.fill if name not in used), None):
        raise ConfigError(
            f"data.fill.{unused}: no training row has {{{{{unused}}}}}",
            hint="leave it out, or spell it as the rows do",
        )


def _plan_line(data: Data, num_used: int, num_train: int, num_validation: int, validation_text: str) -> str:
    """Return the line of the plan on the rows to train and to validate on."""
    used_rows = _count(num_train)
    if num_used < num_train:
        used_rows = f"the first {num_used:,} of {used_rows} (data.max_rows)"
    line = f"{data.train_name}: {used_rows} to train on; {validation_text}"
    if num_validation < FEW_VALIDATION_ROWS:
        line += f": the loss of {_count(num_validation)} tells little"
        if data.validation is None:
            line += ", data.validation=FILE names more"
    return line


def _join_sources(data: Data, datasets: Sequence[Dataset]) -> list[Example]:
    """Return the training rows in the order of their sources, at most `max_rows` of each."""
    pairs = zip(data.sources, datasets, strict=True)
    return [example for source, dataset in pairs for example in dataset.examples[: source.max_rows]]


def training_rows(tokenizer: "Tokenizer", data: Data, rows: SplitRows | None = None) -> EncodedRows:
    """Encode the rows; read them first unless `rows` has them. Raises `ConfigError` and `DataError`."""
    from glmtune.data.encode import encode_examples

    rows = rows or read_and_split(data)
    train, validation, notes = rows.train, rows.validation, list(rows.notes)
    encoded = encode_examples(tokenizer, train, data)
    held_out = encode_examples(tokenizer, validation, data)
    notes += [Note(f"training rows: {line}") for line in encoded.report.lines()]
    for name, part in (("training", encoded), ("validation", held_out)):
        if part.report.warning:
            notes.append(Note(f"{name} rows: {part.report.warning}", is_warning=True))
        notes += _longer_than_context(name, [len(row.input_ids) for row in part.rows], tokenizer, data)
    num_several = sum(sum(message.role == "user" for message in row.messages) > 1 for row in train)
    return EncodedRows(encoded, held_out, tuple(notes), rows.num_empty, num_several)


def _longer_than_context(
    name: str, lengths: Sequence[int], tokenizer: "Tokenizer", data: Data, *, num_new: int = 0
) -> list[Note]:
    """Return a warning if rows, with `num_new` tokens of an answer, are longer than the model's context."""
    context = tokenizer.context
    longer = [length for length in lengths if context is not None and length + num_new > context]
    if context is None or not longer:
        return []
    answers = f", with {num_new:,} tokens of an answer," if num_new else ""
    text = (
        f"{name} rows: {len(longer):,} of {len(lengths):,}{answers} are longer than the {context:,} tokens "
        f"that the model was made for (longest {max(longer) + num_new:,}): expect worse answers there; "
        f"{_shorter_settings(data, context, num_new)}"
    )
    return [Note(text, is_warning=True)]


def _shorter_settings(data: Data, context: int, num_new: int) -> str:
    """Return the settings that keep rows, or prompts and their answers, within the context."""
    source, target = data.max_source_tokens, data.max_target_tokens
    if num_new:
        prompt = max(context - num_new, context // 2)
        name = "max_tokens" if source is None or target is None else "max_source_tokens"
        return f"data.{name}={prompt} evaluate.max_new_tokens={context - prompt} fit into it"
    if source is None or target is None:
        return f"data.max_tokens={context} cuts them"
    room = context - 2  # the official encodings put up to 2 tokens around prompt and completion
    prompt = room * source // (source + target)  # both shrink in proportion
    return f"data.max_source_tokens={prompt} data.max_target_tokens={room - prompt} cuts them"


def _validation_rows(data: Data, path: Path, dataset: Dataset) -> tuple[list[Example], str, list[Note]]:
    """Return the rows of a validation file that the loss is taken over, words for the plan, and notes."""
    validation, whole = draw_validation(dataset.examples, data), len(dataset.examples)
    notes = _notes(path, dataset)
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
    """True if two paths name one file, or files with equal content."""
    if full_path(one) == full_path(other) or not (one.is_file() and other.is_file()):
        return full_path(one) == full_path(other)
    # sizes first: hashing reads the whole files
    return one.stat().st_size == other.stat().st_size and data_hash(one) == data_hash(other)


def _notes(name: str | Path, dataset: Dataset) -> list[Note]:
    """Return the notes and warnings that reading a data set gave, each headed by a name for its rows."""
    notes = [Note(f"{name}: {text}") for text in dataset.notes()]
    return [*notes, *(Note(f"{name}: {text}", is_warning=True) for text in dataset.warnings())]


def _source_counts(data: Data, datasets: Sequence[Dataset], train: Sequence[Example]) -> list[Note]:
    """Return a line per source with its number of training rows, if `data.train` is a list.

    A source without any is a warning, with the reason and the cure.
    """
    if not isinstance(data.train, tuple):
        return []
    counts = Counter(example.source for example in train[: data.max_rows])
    notes = []
    for index, source in enumerate(data.sources):
        text = f"{source.path}: {counts[index]:,} of {_count(len(datasets[index].examples))} to train on"
        if not counts[index] and any(example.source == index for example in train):
            text += (
                f": data.max_rows={data.max_rows} ends before them; {{path: {source.path}, max_rows: ...}} "
                "in data.train limits a file alone"
            )
        elif not counts[index]:
            text += ": all are held out"
        notes.append(Note(text, is_warning=not counts[index]))
    return notes


def _count(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class EvaluationRows:
    """The encoded rows that an evaluation answers."""

    paths: tuple[Path, ...]
    """The files of the rows."""
    name: str
    """Name of the folder of answers: the file's, with `-heldout` behind it for rows held out of that file."""
    rows: "list[EvaluationRow]"
    notes: tuple[Note, ...]


def longest_answer(tokenizer: "Tokenizer", data: Data, evaluate: Evaluation) -> int:
    """Return `max_new_tokens` of an evaluation; by default half the context at most."""
    context = tokenizer.context
    default = DEFAULT_NEW_TOKENS if context is None else min(DEFAULT_NEW_TOKENS, max(context // 2, 1))
    return evaluate.max_new_tokens or data.max_target_tokens or default


def encode_test_rows(tokenizer: "Tokenizer", data: Data, *, num_new: int) -> EvaluationRows:
    """Read and encode the rows of `data.test`, else of `data.validation`, else the held-out rows.

    `num_new`: tokens of the longest answer; the context needs room for them after the prompt.
    """
    from glmtune.data.prompts import encode_prompts
    from glmtune.evaluation.predictions import EvaluationRow

    examples, paths, name, notes = _read_test_rows(data)
    prompts, report = encode_prompts(tokenizer, examples[: data.max_test_rows], data, num_new=num_new)
    notes += [Note(f"test rows: {line}") for line in report.lines()]
    if report.warning:
        notes.append(Note(f"test rows: {report.warning}", is_warning=True))
    lengths = [len(prompt.ids) for prompt in prompts]
    notes += _longer_than_context("test", lengths, tokenizer, data, num_new=num_new)
    rows = [EvaluationRow(i, prompt.ids, prompt.reference, prompt.turn) for i, prompt in enumerate(prompts)]
    return EvaluationRows(paths, name, rows, tuple(notes))


def _read_test_rows(data: Data) -> tuple[Sequence[Example], tuple[Path, ...], str, list[Note]]:
    """Return the rows to answer, their files, the name of the evaluation, and notes."""
    if path := data.test or data.validation:
        dataset = read_dataset(path, data)
        return dataset.examples, (path,), path.stem, _notes("test rows", dataset)
    if data.train is None:
        raise ConfigError("data.test: missing", hint="name the file: data.test=FILE")
    datasets = read_sources(data)
    # all rows held out of training, not only those that `draw_validation` takes for the loss
    held_out = split_holdout(_join_sources(data, datasets), data)[1]
    paths = tuple(source.path for source in data.sources)
    notes = [note for dataset in datasets for note in _notes("test rows", dataset)]
    return held_out, paths, f"{paths[0].stem if len(paths) == 1 else 'train'}-heldout", notes


def first_row(tokenizer: "Tokenizer", rows: "Sequence[TrainingRow]") -> FirstRow:
    """Return the first training row, decoded: all of it, and the tokens that the loss is taken on."""
    row = rows[0]
    learned = [int(label) for label in row.labels if label != -100]  # -100: ignored by the loss
    return FirstRow(show_ids(tokenizer, row.input_ids.tolist()), show_ids(tokenizer, learned), row.where)


def show_ids(tokenizer: "Tokenizer", ids: Sequence[int]) -> str:
    """Decode ids with every control token spelled out by its name."""
    format_ = tokenizer.chat_format
    names = {tokenizer.control_id(name): name for name in (*format_.control_tokens, format_.end_of_text)}
    parts: list[str] = []
    # text tokens are decoded together: one character may be several tokens, a space part of the next word
    for is_control, group in groupby(ids, key=names.__contains__):
        neighbours = list(group)
        parts.append("".join(names[i] for i in neighbours) if is_control else tokenizer.decode(neighbours))
    return "".join(parts)


def full_path(path: Path) -> Path:
    """Return the absolute path; the name of a Hub data set stays as it is."""
    return path if is_hub_name(path) else path.resolve()


def hashed_files(data: Data) -> dict[str, list[Path]]:
    """Return the data files of a run, by the keys of their hashes in env.json."""
    train = [source.path for source in data.sources]
    files = {"train_sha256": train, "validation_sha256": [data.validation] if data.validation else []}
    return {name: paths for name, paths in files.items() if paths}


def hash_rows(data: Data) -> dict[str, str]:
    """Return the hashes of the data files for env.json; several sources' in order, space-separated."""
    return {name: " ".join(map(data_hash, paths)) for name, paths in hashed_files(data).items()}


def data_hash(path: Path) -> str:
    """Return the SHA-256 of a file or of a folder's files; for a Hub data set its name."""
    if is_hub_name(path):
        return str(path)
    # sorted: the order of `rglob` depends on the file system
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
