"""CSV and tab-separated values -> rows, a dict a record, with the line where each begins."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from glmtune.data.json_rows import excerpt
from glmtune.data.tables import Row
from glmtune.errors import DataError
from glmtune.values import Record

CSV_DELIMITERS = ",\t;|"


def csv_rows(text: str, path: Path) -> list[Row]:
    """A dict a record, columns named by the first; the place is the record's first line."""
    before = csv.field_size_limit(2**31 - 1)  # the module's own limit is below a long document
    try:
        return list(_csv_records(text, path))
    finally:
        csv.field_size_limit(before)


def _csv_records(text: str, path: Path) -> Iterator[Row]:
    header_line = text.split("\n", 1)[0]
    delimiter = max(CSV_DELIMITERS, key=header_line.count)
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
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
        place, line = f"{path}:{line}", records.line_num + 1
        if not any(record):  # spreadsheets write such lines below the last row
            continue
        if header is None:
            header = _csv_header(record, place)
            continue
        if len(record) != len(header):
            raise DataError(
                f"{place}: {len(record)} cells, but the header names {len(header)} columns",
                hint='put text that holds a comma in double quotes: "..."',
            )
        yield Row(place, Record(zip(header, record, strict=True)))


def _csv_header(record: list[str], place: str) -> list[str]:
    twice = {name for name in record if record.count(name) > 1}
    if twice:
        raise DataError(
            f"{place}: the header names {sorted(twice)[0]!r} twice", hint="give each column its own name"
        )
    if len(record) < 2:
        raise DataError(
            f"{place}: neither JSON nor a CSV header with several columns: {excerpt(record[0])}",
            hint="write a JSON array, JSON lines, or CSV whose first line names the columns",
        )
    return record
