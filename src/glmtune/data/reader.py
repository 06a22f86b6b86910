"""Files -> examples, with every error naming file and line.

JSON arrays, JSON lines and CSV are told apart by their content. A row that cannot be used is an error that
says where it stands and what to do about it. What a dialogue holds after its last answer is left out and
counted, and so is every column that nobody reads; nothing else is.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from glmtune.charset import UTF8, Decoded, NotTextError, decode_given
from glmtune.data import columns, order, tables
from glmtune.data.csv_rows import SUFFIXES as CSV_SUFFIXES
from glmtune.data.csv_rows import csv_rows
from glmtune.data.example import Example
from glmtune.data.formats import (
    Parsed,
    RowParser,
    find_format,
    fits,
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

INDEX = re.compile(r"\[\d+\]")
WEB_PAGES = ("<!doctype html", "<html")
PATTERN = re.compile(r"[*?\[]")
SUFFIXES = {".json", ".jsonl", ".csv", ".tsv", ".parquet"}
"""Of files of rows."""
MOST_NAMED = 20
"""Files of a folder that a hint names one by one."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples of a file, in file order."""

    examples: list[Example]
    format: str
    """Names of the row formats found, that of most rows first."""
    num_cut: int = 0
    """Dialogues whose turns after the last answer were left out."""
    num_unanswered: int = 0
    """Rows left out whole: dialogues without any answer."""
    unread: Counter[str] = field(default_factory=Counter)
    """The rows that fill a column which nobody reads; `messages.name` is a key of turns."""
    ignored: Counter[str] = field(default_factory=Counter)
    """The rows that fill a column which the settings leave out."""
    void: Counter[str] = field(default_factory=Counter)
    """The rows whose cell of a column spells nothing, such as `nan`, and was taken as text."""
    plain: Counter[str] = field(default_factory=Counter)
    """The rows whose cell of a column is a number, true or false, and was read as its text."""
    columns: tuple[str, ...] = ()
    """Those that became part of the conversations."""
    taken: str = ""
    """Those taken as question and answer, where neither the settings nor a format names them."""
    inside: str | None = None
    """Column of the file's one object whose list holds the rows."""
    charset: str = UTF8
    """Character set that a file of text was read in."""

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
        """What was found or left out that a user should know, a sentence each."""
        counts = {
            "dialogues cut after their last answer": self.num_cut,
            "dialogues without any answer left out": self.num_unanswered,
            "empty questions kept": self.num_empty_questions,
            "answers with a <think> inside that never closes, kept": self.num_open_thoughts,
        }
        return [*(f"{what}: {count:,}" for what, count in counts.items() if count), *self.file_notes()]

    def warnings(self) -> list[str]:
        """What was read though it is likely a mistake, a sentence each."""
        return [*filter(None, [order.unasked(self.examples)])]

    def file_notes(self) -> list[str]:
        """How the file and its turns were read, and what became of columns that are no part of them."""
        counts = {
            "columns that nobody reads": self.unread,
            "columns left out by data.ignore_columns": self.ignored,
            "cells that spell nothing (nan, None, null), read as text": self.void,
            "cells that hold a number, true or false, read as text": self.plain,
        }
        read = [] if self.charset == UTF8 else [f"read as {self.charset.upper()}, not as UTF-8"]
        if self.inside:
            read.append(f"one object around everything: its rows are the list under {self.inside!r}")
        if self.taken:
            others = "(others: data.prompt_column, data.response_column)"
            read.append(f"taken as question and answer: {self.taken} {others}")
        read += filter(None, [order.doubled(self.examples)])
        return [*read, *(f"{what}: {columns.listed(found)}" for what, found in counts.items() if found)]


class SeveralFilesError(DataError):
    """One file is needed, and the name is of several; `names` are theirs."""

    def __init__(self, message: str, names: list[str], *, begun: str = "") -> None:
        super().__init__(message, hint=f"{begun}{join_hint(names)}")
        self.names, self._begun = names, begun

    def leading(self, way: str) -> "SeveralFilesError":
        """The error with another way out before that of joining the files."""
        return SeveralFilesError(str(self), self.names, begun=f"{self._begun}{way}; or ")


def read_examples(path: Path, settings: Data) -> list[Example]:
    """Read every row of a file, or of a data set folder or Hub name, as one example, in file order.

    Raises `DataError` with the place of the first thing that cannot be used, and how many rows are like it.
    """
    return read_dataset(path, settings).examples


def read_dataset(path: Path, settings: Data) -> Dataset:
    """Read the examples with the format they were found in; errors as of `read_examples`."""
    rows, charset = _read(path, settings.charset)
    if not rows:
        raise DataError(f"{path}: holds no rows", hint="write one row for each example")
    check_objects(rows)
    if len(rows) == 1:
        check_not_columns(rows[0])
    inside = wrapped_rows(rows[0]) if len(rows) == 1 else None
    if inside and not fits(rows[0].value, settings):
        rows = [
            RawRow(f"{rows[0].where} ({inside}[{i}])", row) for i, row in enumerate(rows[0].value[inside])
        ]
    else:
        inside = None
    try:
        parse = find_format([row.value for row in rows], settings)
    except DataError as err:
        if len(rows) == 1:
            check_not_wrapped(rows[0])
        raise DataError(f"{rows[0].where}: {err}", hint=err.hint) from None
    return replace(_parse_rows(rows, parse), charset=charset, inside=inside)


def read_raw_rows(path: Path, charset: str = UTF8) -> list[RawRow]:
    """Read the raw rows of a file, a saved data set or a Hub data set, whatever their columns."""
    return _read(path, charset)[0]


def _read(path: Path, charset: str) -> tuple[list[RawRow], str]:
    """The raw rows, and the character set of a file of text."""
    if tables.is_hub_name(path):
        return tables.hub_rows(path), UTF8
    if (bundled := find_rows(path)) != path:
        tell(f"{path}: not here, so the bundled one, {bundled}")
        path = bundled
    if is_there(path) and tables.is_saved_dataset(path):
        return tables.saved_rows(path), UTF8
    if is_there(path) and tables.is_parquet(path):
        return tables.parquet_rows(path), UTF8
    text, found = _read_text(path, charset)
    return _text_rows(text, path), found


def _text_rows(text: str, path: Path) -> list[RawRow]:
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{path}: is empty", hint="write one row for each example")
    if text.lstrip()[:14].lower().startswith(WEB_PAGES):
        raise DataError(f"{path}: is a web page", hint="download the file itself, not the page that shows it")
    if path.suffix.lower() in CSV_SUFFIXES:
        return csv_rows(text, path)
    if start == "[":
        return list(array_rows(text, path))
    if start == "{" or path.suffix.lower() in {".json", ".jsonl"}:
        return list(line_rows(text, path))
    return csv_rows(text, path)


def _parse_rows(rows: list[RawRow], parse: RowParser) -> Dataset:
    parsed: list[tuple[str, Parsed]] = []
    bad: list[tuple[str, DataError]] = []
    for row in rows:
        try:
            parsed.append((row.where, parse.parse(row.value)))
        except DataError as err:
            bad.append((row.where, err))
    if bad:
        raise _first_of(bad)
    unread = _count(found.unread for _, found in parsed)
    _check_nothing_lost(parsed, unread)
    kept = [up_to_last_answer(found.messages) for _, found in parsed]
    examples = [
        Example(messages, where) for messages, (where, _) in zip(kept, parsed, strict=True) if messages
    ]
    if not examples:
        raise DataError(
            f"{rows[0].where}: no assistant turn, here or in any other row",
            hint="give the dialogues answers: there is nothing to learn in questions alone",
        )
    order.check_asked(examples)
    return Dataset(
        examples,
        parse.format,
        num_cut=sum(
            0 < len(part) < len(found.messages) for part, (_, found) in zip(kept, parsed, strict=True)
        ),
        num_unanswered=len(rows) - len(examples),
        unread=unread,
        ignored=_count(found.ignored for _, found in parsed),
        void=_count(found.void for _, found in parsed),
        plain=_count(found.plain for _, found in parsed),
        columns=tuple(dict.fromkeys(name for _, found in parsed for name in found.read)),
        taken=parse.taken,
    )


def _count(names: Iterable[Iterable[str]]) -> Counter[str]:
    return Counter(chain.from_iterable(names))


def _check_nothing_lost(parsed: list[tuple[str, Parsed]], unread: Counter[str]) -> None:
    """Stop at columns that carry meaning and that nobody reads."""
    lost = Counter({name: count for name, count in unread.items() if columns.carries_meaning(name)})
    if lost:
        where, found = next((where, found) for where, found in parsed if lost.keys() & set(found.unread))
        error = columns.lost(lost, is_dialogue=found.is_dialogue)
        raise DataError(f"{where}: {error}", hint=error.hint)


def _first_of(bad: list[tuple[str, DataError]]) -> DataError:
    """Name the first bad row, and count those with the same fault (the same words up to what was found)."""
    where, first = bad[0]
    faults = [INDEX.sub("[]", str(err).partition(", got ")[0]) for _, err in bad]
    others = faults.count(faults[0]) - 1
    more = f" (and {others} more row{'s' if others > 1 else ''} like it)" if others else ""
    return DataError(f"{where}: {first}{more}", hint=first.hint)


def check_objects(rows: list[RawRow]) -> None:
    """Raise `DataError` for the first row that is no object with named columns."""
    bad = [(row.where, _no_object(row.value)) for row in rows if not isinstance(row.value, dict)]
    if bad:
        raise _first_of(bad)


def _no_object(value: Any) -> DataError:
    spelled = shortened(json.dumps(value, ensure_ascii=False))
    hint = f"write each row like {ROW_FORM}"
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        column = dialogue_of(value[0])
        hint = "if these are rows, take out the inner [ and ]: all rows stand in one array"
        hint = f'write each dialogue as a row: {{"{column}": [...]}}' if column else hint
    return DataError(f"a row must be an object with named columns, got {spelled}", hint=hint)


# Bytes -> text


def _read_text(path: Path, charset: str) -> Decoded:
    try:
        return decode_given(load_bytes(path, limit=None), str(path), charset)
    except OSError as err:
        raise _unreadable(path, err) from err
    except NotTextError as err:
        raise DataError(f"{path}:{err.line}: {err}", hint=err.hint) from None


def _unreadable(path: Path, err: OSError) -> GlmtuneError:
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
    return unreadable(path, err, DataError, hint=_reading_hint(path, err))


def _several(path: Path) -> list[str]:
    """The files that a path names if it is a list, or those not empty of a pattern such as `rows/*.jsonl`."""
    names = split_paths(str(path))
    if len(names) > 1 or not PATTERN.search(str(path)):
        return names
    try:
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        return sorted(str(file) for file in found if file.is_file() and file.stat().st_size)
    except (ValueError, OSError):  # no pattern that a folder can be searched for
        return []


def _reading_hint(path: Path, err: OSError) -> str:
    if not isinstance(err, FileNotFoundError):
        return "check its permissions and the disk"
    if len(names := _several(path)) == 1 and names != [str(path)]:
        return f"did you mean {names[0]}?"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}{tables.hub_hint(path)}"
    kinds = {*SUFFIXES, ".txt", path.suffix}
    names = _names_in(path.parent)
    if near := nearest_file(path, [name for name in names if Path(name).suffix in kinds]):
        return f"did you mean {path.with_name(near)}?"
    rows = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    rows.sort(key=lambda name: Path(name).suffix != path.suffix)
    there = f"; files of rows there: {', '.join(rows[:5])}" if rows else ""
    return f"there is no such file in {path.parent}{there}"


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(child.name for child in folder.iterdir() if child.is_file())
    except OSError:  # the folder itself cannot be read: nothing to suggest
        return []
