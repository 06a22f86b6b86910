"""Read files of rows as examples, with every error naming file and line.

JSON arrays, JSON lines and CSV are told apart by their content. A row that cannot be used is an error with
its file, line and cure. Turns after a dialogue's last answer and columns that nothing reads are left out and
counted; nothing else is left out.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from glmtune.charset import UTF8, NotTextError, decode_given
from glmtune.data import columns, order, tables
from glmtune.data.csv_rows import SUFFIXES as CSV_SUFFIXES
from glmtune.data.csv_rows import csv_rows
from glmtune.data.example import Example
from glmtune.data.fill import fill_rows, warn_of_placeholders
from glmtune.data.formats import (
    ParsedRow,
    RowParser,
    find_parser,
    has_known_columns,
    has_open_thought,
    up_to_last_answer,
)
from glmtune.data.json_rows import (
    array_rows,
    check_not_columns,
    check_not_wrapped,
    line_rows,
    shortened,
    wrapped_rows,
)
from glmtune.data.tables import RawRow
from glmtune.data.unknown import ROW_FORM, dialogue_of
from glmtune.errors import DataError, GlmtuneError
from glmtune.files import is_there, load_bytes, unreadable
from glmtune.log import tell
from glmtune.near import nearest_file
from glmtune.paths import find_rows, join_hint, split_paths
from glmtune.recipe.settings import Data
from glmtune.run_files import RECIPE_FILE
from glmtune.values import EmptyError

INDEX = re.compile(r"\[\d+\]")
WEB_PAGES = ("<!doctype html", "<html")
PATTERN = re.compile(r"[*?\[]")
SUFFIXES = {".json", ".jsonl", ".csv", ".tsv", ".parquet"}
"""Suffixes of files of rows."""
MOST_NAMED = 20
"""A hint names the files of a folder one by one up to this number."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples of a file, in file order."""

    examples: list[Example]
    format: str
    """Names of the row formats found, the most frequent first."""
    num_cut: int = 0
    """Dialogues whose turns after the last answer were left out."""
    empty: tuple[str, ...] = ()
    """Places of the rows left out by `data.empty=skip`."""
    num_unanswered: int = 0
    """Rows left out whole: dialogues without any answer."""
    unread: Counter[str] = field(default_factory=Counter)
    """Columns that nothing reads -> rows that fill them; `messages.name` is a key of turns."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Columns left out by `data.ignore_columns` -> rows that fill them."""
    void: Counter[str] = field(default_factory=Counter)
    """Columns -> rows whose cell spells no value, such as `nan`, and was read as text."""
    plain: Counter[str] = field(default_factory=Counter)
    """Columns -> rows whose cell is a number, true or false, and was read as text."""
    columns: tuple[str, ...] = ()
    """Columns that became part of the conversations."""
    filled: Counter[str] = field(default_factory=Counter)
    """Words of `data.fill` -> rows that had their placeholder."""
    taken: str = ""
    """Columns taken as question and answer, in words, if neither the settings nor a format name them."""
    inside: str | None = None
    """Column that holds the list of all rows, if the file is one object around them."""
    charset: str = UTF8
    """Character set that a text file was read in."""

    @property
    def num_empty_questions(self) -> int:
        """User turns without text; they are kept."""
        return sum(
            message.role == "user" and not message.content.strip()
            for example in self.examples
            for message in example.messages
        )

    @property
    def num_open_thoughts(self) -> int:
        """Answers with a <think> inside that never closes; they are kept as they are."""
        return sum(has_open_thought(message) for example in self.examples for message in example.messages)

    def notes(self) -> list[str]:
        """Return what was noticed and left out, for the user, a sentence each."""
        counts = {
            "dialogues cut after their last answer": self.num_cut,
            "dialogues without any answer left out": self.num_unanswered,
            "empty questions kept": self.num_empty_questions,
            "answers with a <think> inside that never closes, kept": self.num_open_thoughts,
        }
        skipped = order.count_and_first("rows with an empty question or answer left out", Counter(self.empty))
        told = [*(f"{what}: {count:,}" for what, count in counts.items() if count), skipped]
        return [*filter(None, told), *self.file_notes()]

    def warnings(self) -> list[str]:
        """Return what was read although it is likely a mistake, a sentence each."""
        return [*filter(None, [order.warn_of_unasked(self.examples), warn_of_placeholders(self.examples)])]

    def file_notes(self) -> list[str]:
        """Return notes on how the file was read and on columns that were left out, a sentence each."""
        counts = {
            "columns that nobody reads": self.unread,
            "columns left out by data.ignore_columns": self.ignored,
            "cells that spell nothing (nan, None, null), read as text": self.void,
            "cells that hold a number, true or false, read as text": self.plain,
        }
        notes = [] if self.charset == UTF8 else [f"read as {self.charset.upper()}, not as UTF-8"]
        if self.inside:
            notes.append(f"one object around everything: its rows are the list under {self.inside!r}")
        if self.filled:
            rows = ", ".join(f"{{{{{name}}}}} in {count:,} rows" for name, count in self.filled.items())
            notes.append(f"filled in by data.fill: {rows}")
        if self.taken:
            others = "(others: data.prompt_column, data.response_column)"
            notes.append(f"taken as question and answer: {self.taken} {others}")
        notes += filter(None, [order.note_doubled_turns(self.examples)])
        return [*notes, *(f"{what}: {columns.list_counts(rows)}" for what, rows in counts.items() if rows)]


class SeveralFilesError(DataError):
    """A path names several files where one is needed; `names` are the files."""

    def __init__(self, message: str, names: list[str], *, begun: str = "") -> None:
        super().__init__(message, hint=f"{begun}{join_hint(names)}")
        self.names, self._begun = names, begun

    def leading(self, way: str) -> "SeveralFilesError":
        """Return the error with another way out before the advice to join the files."""
        return SeveralFilesError(str(self), self.names, begun=f"{self._begun}{way}; or ")


def read_examples(path: Path, settings: Data) -> list[Example]:
    """Read every row of a file, or of a data set folder or Hub name, as one example, in file order.

    Raises `DataError` with file and line of the first row that cannot be used, and how many rows are like it.
    """
    return read_dataset(path, settings).examples


def read_dataset(path: Path, settings: Data) -> Dataset:
    """Read the examples of a file and what was noticed about it; errors as of `read_examples`."""
    rows, charset = _read_rows(path, settings.charset)
    if not rows:
        raise DataError(f"{path}: holds no rows", hint="write one row for each example")
    check_objects(rows)
    # a single object is often the whole file: a table by columns, or {"data": [rows]}
    if len(rows) == 1:
        check_not_columns(rows[0])
    inside = wrapped_rows(rows[0]) if len(rows) == 1 else None
    if inside and not has_known_columns(rows[0].value, settings):
        rows = [
            RawRow(f"{rows[0].where} ({inside}[{i}])", row) for i, row in enumerate(rows[0].value[inside])
        ]
    else:
        inside = None
    rows, filled = fill_rows(rows, settings.words)
    try:
        parser = find_parser([row.value for row in rows], settings)
    except DataError as err:
        if len(rows) == 1:
            check_not_wrapped(rows[0])
        raise DataError(f"{rows[0].where}: {err}", hint=err.hint) from None
    return replace(_parse_rows(rows, parser), charset=charset, inside=inside, filled=filled)


def read_raw_rows(path: Path, charset: str = UTF8) -> list[RawRow]:
    """Read the raw rows of a file, a saved data set or a Hub data set, whatever their columns."""
    return _read_rows(path, charset)[0]


def _read_rows(path: Path, charset: str) -> tuple[list[RawRow], str]:
    """Return the raw rows, and the character set of a text file."""
    if tables.is_hub_name(path):
        return tables.hub_rows(path), UTF8
    if (bundled := find_rows(path)) != path:
        tell(f"{path}: not here, so the bundled one, {bundled}")
        path = bundled
    if is_there(path) and tables.is_saved_dataset(path):
        return tables.saved_rows(path), UTF8
    if is_there(path) and tables.is_parquet(path):
        return tables.parquet_rows(path), UTF8
    try:
        text, codec = decode_given(load_bytes(path, limit=None), str(path), charset)
    except OSError as err:
        raise _unreadable(path, err) from err
    except NotTextError as err:
        raise DataError(f"{path}:{err.line}: {err}", hint=err.hint) from None
    start = text.lstrip()[:14].lower()
    if not start:
        raise DataError(f"{path}: is empty", hint="write one row for each example")
    if start.startswith(WEB_PAGES):
        raise DataError(f"{path}: is a web page", hint="download the file itself, not the page that shows it")
    # a suffix of CSV decides, as a cell may begin with [; one of JSON does not, as arrays and lines share it
    if path.suffix.lower() in CSV_SUFFIXES:
        return csv_rows(text, path), codec
    if start.startswith("["):
        return list(array_rows(text, path)), codec
    if start.startswith("{") or path.suffix.lower() in {".json", ".jsonl"}:
        return list(line_rows(text, path)), codec
    return csv_rows(text, path), codec


def _parse_rows(rows: list[RawRow], parser: RowParser) -> Dataset:
    parsed: list[tuple[str, ParsedRow]] = []
    errors: list[tuple[str, DataError]] = []
    empty: list[str] = []
    for row in rows:
        try:
            parsed.append((row.where, parser.parse(row.value)))
        except DataError as err:
            if parser.settings.empty == "skip" and isinstance(err, EmptyError):
                empty.append(row.where)
            else:
                errors.append((row.where, err))
    if errors:
        raise _first_error(errors)
    if not parsed:
        raise DataError(
            f"{rows[0].where}: no question or no answer, here and in every other row",
            hint="name the columns that hold them: data.prompt_column=... data.response_column=...; to learn "
            "texts alone, without questions: data.empty=error",
        )
    unread = _count(row.unread for _, row in parsed)
    lost = Counter({name: count for name, count in unread.items() if columns.carries_meaning(name)})
    if lost:
        where, first = next((where, row) for where, row in parsed if lost.keys() & set(row.unread))
        error = columns.lost_columns(lost, is_dialogue=first.is_dialogue)
        raise DataError(f"{where}: {error}", hint=error.hint)
    conversations = [up_to_last_answer(row.messages) for _, row in parsed]
    examples = [
        Example(messages, where)
        for messages, (where, _) in zip(conversations, parsed, strict=True)
        if messages
    ]
    if not examples:
        raise DataError(
            f"{rows[0].where}: no assistant turn, here or in any other row",
            hint="give the dialogues answers: there is nothing to learn in questions alone",
        )
    order.check_asked(examples)
    return Dataset(
        examples,
        parser.format,
        num_cut=sum(
            0 < len(messages) < len(row.messages)
            for messages, (_, row) in zip(conversations, parsed, strict=True)
        ),
        empty=tuple(empty),
        num_unanswered=len(parsed) - len(examples),
        unread=unread,
        ignored=_count(row.ignored for _, row in parsed),
        void=_count(row.void for _, row in parsed),
        plain=_count(row.plain for _, row in parsed),
        columns=tuple(dict.fromkeys(name for _, row in parsed for name in row.read)),
        taken=parser.taken,
    )


def _count(names: Iterable[Iterable[str]]) -> Counter[str]:
    return Counter(chain.from_iterable(names))


def _first_error(errors: list[tuple[str, DataError]]) -> DataError:
    """Return the first row's error, with the number of other rows that have the same fault."""
    where, first = errors[0]
    # the same fault has the same words, but for the value found and the number of the turn
    faults = [INDEX.sub("[]", str(err).partition(", got ")[0]) for _, err in errors]
    others = faults.count(faults[0]) - 1
    more = f" (and {others} more row{'s' if others > 1 else ''} like it)" if others else ""
    skip = "; or data.empty=skip drops it" if isinstance(first, EmptyError) else ""
    return DataError(f"{where}: {first}{more}", hint=f"{first.hint}{skip}")


def check_objects(rows: list[RawRow]) -> None:
    """Raise `DataError` for the first row that is not an object with named columns."""
    errors = []
    for row in rows:
        if isinstance(row.value, dict):
            continue
        hint = f"write each row like {ROW_FORM}"
        if isinstance(row.value, list) and row.value and all(isinstance(item, dict) for item in row.value):
            column = dialogue_of(row.value[0])
            hint = "if these are rows, take out the inner [ and ]: all rows stand in one array"
            hint = f'write each dialogue as a row: {{"{column}": [...]}}' if column else hint
        spelled = shortened(json.dumps(row.value, ensure_ascii=False))
        error = DataError(f"a row must be an object with named columns, got {spelled}", hint=hint)
        errors.append((row.where, error))
    if errors:
        raise _first_error(errors)


# Files that cannot be read


def _unreadable(path: Path, err: OSError) -> GlmtuneError:
    """Return the error for a path that is a folder or a list of files, is missing, or cannot be read."""
    if is_there(path) and path.is_dir():
        names = _names_in(path)
        hint = f"name one of its files: {', '.join(names[:5])}" if names else "the folder holds no files"
        rows = [str(path / name) for name in names if Path(name).suffix.lower() in SUFFIXES]
        message = f"{path}: is a folder, a file is needed"
        if 1 < len(rows) <= MOST_NAMED and RECIPE_FILE not in names:
            return SeveralFilesError(message, rows, begun=f"{hint}; or ")
        return DataError(message, hint=hint)
    if isinstance(err, FileNotFoundError) and len(names := _several(path)) > 1:
        return SeveralFilesError(f"{path}: one file is needed, got {len(names)} names", names)
    hint = ""
    if not isinstance(err, FileNotFoundError):
        hint = "check its permissions and the disk"
    elif len(names := _several(path)) == 1 and names != [str(path)]:
        hint = f"did you mean {names[0]}?"
    elif not path.parent.is_dir():
        hint = f"there is no folder {path.parent}{tables.hub_hint(path)}"
    else:
        kinds = {*SUFFIXES, ".txt", path.suffix}
        names = _names_in(path.parent)
        rows = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
        rows.sort(key=lambda name: Path(name).suffix != path.suffix)
        there = f"; files of rows there: {', '.join(rows[:5])}" if rows else ""
        hint = f"there is no such file in {path.parent}{there}"
        if near := nearest_file(path, [name for name in names if Path(name).suffix in kinds]):
            hint = f"did you mean {path.with_name(near)}?"
    return unreadable(path, err, DataError, hint=hint)


def _several(path: Path) -> list[str]:
    """Return the files of a list of paths, or the non-empty ones of a pattern such as `rows/*.jsonl`."""
    names = split_paths(str(path))
    if len(names) > 1 or not PATTERN.search(str(path)):
        return names
    try:
        files = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        return sorted(str(file) for file in files if file.is_file() and file.stat().st_size)
    except (ValueError, OSError):  # no pattern that a folder can be searched for
        return []


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(child.name for child in folder.iterdir() if child.is_file())
    except OSError:  # the folder itself cannot be read: nothing to suggest
        return []
