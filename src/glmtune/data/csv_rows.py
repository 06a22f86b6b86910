"""CSV and tab-separated values -> rows, a dict a record, with the line where each begins."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from glmtune.data.json_rows import excerpt
from glmtune.data.tables import RawRow
from glmtune.data.unknown import MARKS, ROW_FORM, TURNS_FORM
from glmtune.errors import DataError
from glmtune.values import TableRow

CSV_DELIMITERS = ",\t;|"
SUFFIXES = {".csv", ".tsv"}
EXCELS_DELIMITER = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
"""The line above the header that tells Excel the delimiter."""
CURLY = ("“", "”")
QUOTED = re.compile('"[^"]*"')
PROSE = re.compile(r"[.。!！] |[.。!！;；:：]$|.{60}|[<>]")
"""What stands in the first line of a text, and in no name of a column."""


def csv_rows(text: str, path: Path) -> list[RawRow]:
    """A dict a record, columns named by the first; the place is the record's first line."""
    before = csv.field_size_limit(2**31 - 1)  # the module's own limit is below a long document
    try:
        return list(_csv_records(text, path))
    finally:
        csv.field_size_limit(before)


def _csv_records(text: str, path: Path) -> Iterator[RawRow]:
    line = 1
    if named := EXCELS_DELIMITER.match(text):
        text, line = text[named.end() :], 2
    header_line = QUOTED.sub("", text.split("\n", 1)[0])
    delimiter = named[1] if named else max(CSV_DELIMITERS, key=header_line.count)
    # a space behind each delimiter of the header is the writer's habit, and no part of names and cells
    is_spaced = header_line.count(delimiter) == header_line.count(f"{delimiter} ") > 0
    records = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=is_spaced
    )
    header: list[str] | None = None
    first = line
    while True:
        try:
            record = next(records, None)
        except csv.Error as err:
            raise DataError(
                f"{path}:{line}: broken CSV: {err}",
                hint='put text with a comma, quote or line break in double quotes, a quote inside as ""',
            ) from None
        if record is None:
            return
        where, line = f"{path}:{line}", records.line_num + first
        if not any(record):  # spreadsheets write such lines below the last row
            continue
        if header is None:
            is_sure = delimiter == "\t" or path.suffix.lower() in SUFFIXES
            names = [name.strip() for name in record]
            header = _csv_header(names, where, delimiter, is_sure=is_sure)
            continue
        if len(record) != len(header):
            raise DataError(
                f"{where}: {len(record)} cells, but the header names {len(header)} columns",
                hint=f'put text that holds {delimiter!r} in double quotes: "..."',
            )
        cells = zip(header, record, strict=True)  # a spreadsheet's empty columns have no names
        yield RawRow(where, TableRow((name, cell) for name, cell in cells if name or cell))


def _csv_header(record: list[str], where: str, delimiter: str, *, is_sure: bool) -> list[str]:
    """The names of the columns; a file that is not sure to be a table may be text with commas in it."""
    twice = {name for name in record if name and record.count(name) > 1}
    if twice:
        raise DataError(
            f"{where}: the header names {sorted(twice)[0]!r} twice", hint="give each column its own name"
        )
    if len(record) < 2 or (not is_sure and any(map(PROSE.search, record))):
        hint = f"write JSON lines, each like {ROW_FORM}; or CSV whose first line names the columns"
        if MARKS.search("|".join(record)):
            hint = f"write the turns as JSON lines, without a chat format's marks: {TURNS_FORM}"
        elif "，" in record[0]:
            hint = "replace each ， between names and cells by a comma; one inside text may stay"
        raise DataError(
            f"{where}: neither JSON nor a CSV header with several columns: {excerpt(record[0])}",
            hint=hint,
        )
    if any(name[:1] in CURLY for name in record):
        raise DataError(
            f"{where}: a curly quote where CSV needs a straight one: {excerpt(delimiter.join(record))}",
            hint='replace those around names and cells by "',
        )
    if len([*filter(None, record)]) < 2:
        raise DataError(
            f"{where}: a header that names one column of {len(record)}: {excerpt(max(record))}",
            hint="remove the lines above the names of the columns",
        )
    return record
