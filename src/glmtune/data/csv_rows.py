"""Read CSV and tab-separated values: one row a record, with the line where the record begins."""

import csv
import io
import re
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
CURLY_QUOTES = ("“", "”")
QUOTED = re.compile('"[^"]*"')
PROSE = re.compile(r"[.。!！] |[.。!！;；:：]$|.{60}|[<>]")
"""Signs of a sentence or a web page: found in the first line of a text, never in the name of a column."""


def csv_rows(text: str, path: Path) -> list[RawRow]:
    """Return a row for each record below the header, `where` naming the record's first line.

    Raises `DataError` for broken CSV, and for a header or record that does not fit.
    """
    line = 1
    if excels := EXCELS_DELIMITER.match(text):
        text, line = text[excels.end() :], 2
    header_line = QUOTED.sub("", text.split("\n", 1)[0])
    delimiter = excels[1] if excels else max(CSV_DELIMITERS, key=header_line.count)
    # a space behind each delimiter of the header is the writer's habit, and no part of names and cells
    is_spaced = header_line.count(delimiter) == header_line.count(f"{delimiter} ") > 0
    # strict: without it a quote left open swallows the rows below it into one cell, silently
    records = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=is_spaced
    )
    rows: list[RawRow] = []
    header: list[str] | None = None
    first_line = line
    # the csv module's own limit is below a long document; it holds for the whole process, so it is put back
    limit_before = csv.field_size_limit(2**31 - 1)
    try:
        for record in records:
            # line_num counts the lines read so far: a record with line breaks inside begins before it
            where, line = f"{path}:{line}", records.line_num + first_line
            if not any(record):  # spreadsheets write such lines below the last row
                continue
            if header is None:
                is_table = delimiter == "\t" or path.suffix.lower() in SUFFIXES
                header = [name.strip() for name in record]
                _check_header(header, where, delimiter, is_table=is_table)
                continue
            if len(record) != len(header):
                raise DataError(
                    f"{where}: {len(record)} cells, but the header names {len(header)} columns",
                    hint=f'put text that holds {delimiter!r} in double quotes: "..."',
                )
            cells = zip(header, record, strict=True)  # a spreadsheet's empty columns have no names
            rows.append(RawRow(where, TableRow((name, cell) for name, cell in cells if name or cell)))
    except csv.Error as err:
        raise DataError(
            f"{path}:{line}: broken CSV: {err}",
            hint='put text with a comma, quote or line break in double quotes, a quote inside as ""',
        ) from None
    finally:
        csv.field_size_limit(limit_before)
    return rows


def _check_header(record: list[str], where: str, delimiter: str, *, is_table: bool) -> None:
    """Raise `DataError` unless the record names columns, each once.

    `is_table`: the file's name or tabs say so; any other file may be a text with commas in it.
    """
    twice = {name for name in record if name and record.count(name) > 1}
    if twice:
        raise DataError(
            f"{where}: the header names {sorted(twice)[0]!r} twice", hint="give each column its own name"
        )
    if len(record) < 2 or (not is_table and any(map(PROSE.search, record))):
        hint = f"write JSON lines, each like {ROW_FORM}; or CSV whose first line names the columns"
        if MARKS.search("|".join(record)):
            hint = f"write the turns as JSON lines, without a chat format's marks: {TURNS_FORM}"
        elif "，" in record[0]:
            hint = "replace each ， between names and cells by a comma; one inside text may stay"
        raise DataError(
            f"{where}: neither JSON nor a CSV header with several columns: {excerpt(record[0])}",
            hint=hint,
        )
    if any(name[:1] in CURLY_QUOTES for name in record):
        raise DataError(
            f"{where}: a curly quote where CSV needs a straight one: {excerpt(delimiter.join(record))}",
            hint='replace those around names and cells by "',
        )
    if len([*filter(None, record)]) < 2:
        raise DataError(
            f"{where}: a header that names one column of {len(record)}: {excerpt(max(record))}",
            hint="remove the lines above the names of the columns",
        )
