"""Files -> examples, with every error naming file and line.

JSON arrays, JSON lines and CSV are told apart by their content. A row that cannot be used is an error that
says where it stands and what to do about it. What a dialogue holds after its last answer is left out, and
counted; nothing else is.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from glmtune.data import tables
from glmtune.data.example import Example
from glmtune.data.formats import RowParser, find_format, up_to_last_answer
from glmtune.data.tables import Row
from glmtune.errors import DataError
from glmtune.recipe.settings import Data

CONTEXT_CHARACTERS = 20
CSV_DELIMITERS = ",\t;"
SPACE = re.compile(r"[ \t\r\n]*")
INDEX = re.compile(r"\[\d+\]")
# A curly quote that stands where JSON has a straight one: around a key, or at either end of a value.
CURLY_QUOTE = re.compile(
    r"""[{,]\s*(?:[“”„‟][^"“”]*["“”]|"[^"“”]*[“”])\s*:|"\s*:\s*[“”„‟]|[“”]\s*\}\s*,?\s*$""", re.MULTILINE
)
CURLY_QUOTES = re.compile("[“”„‟]")
CULPRITS = {
    "“": 'a curly quote “ where JSON needs a straight "',
    "”": 'a curly quote ” where JSON needs a straight "',
    "„": 'a curly quote „ where JSON needs a straight "',
    "‟": 'a curly quote ‟ where JSON needs a straight "',
    "‘": 'a curly quote ‘ where JSON needs a straight "',
    "’": 'a curly quote ’ where JSON needs a straight "',
    "'": "a single quote ' where JSON needs a double \"",
    "，": "a full-width comma ， where JSON needs ,",
    "：": "a full-width colon ： where JSON needs :",
    "\ufeff": "a byte-order mark (BOM) inside the file",
    "\u3000": "a full-width space",
    "\u00a0": "a non-breaking space",
}
BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "UTF-8 with a byte-order mark (BOM)",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples of a file, in file order."""

    examples: list[Example]
    format: str
    """Name of the row format found."""
    num_cut: int = 0
    """Dialogues whose turns after the last answer were left out."""
    num_unanswered: int = 0
    """Rows left out whole: dialogues without any answer."""

    @property
    def num_empty_questions(self) -> int:
        """User turns without text; they are kept."""
        return sum(
            message.role == "user" and not message.content.strip()
            for example in self.examples
            for message in example.messages
        )

    def notes(self) -> list[str]:
        """What was found or left out that a user should know, a sentence each."""
        counts = {
            "dialogues cut after their last answer": self.num_cut,
            "dialogues without any answer left out": self.num_unanswered,
            "empty questions kept": self.num_empty_questions,
        }
        return [f"{what}: {count:,}" for what, count in counts.items() if count]


def read_examples(path: Path, settings: Data) -> list[Example]:
    """Read every row of a file, or of a data set folder or Hub name, as one example, in file order.

    Raises `DataError` with the place of the first thing that cannot be used, and how many rows are like it.
    """
    return read_dataset(path, settings).examples


def read_dataset(path: Path, settings: Data) -> Dataset:
    """Read the examples with the format they were found in; errors as of `read_examples`."""
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: holds no rows", hint="write one row for each example")
    _check_objects(rows)
    try:
        parse = find_format([row.value for row in rows], settings)
    except DataError as err:
        if len(rows) == 1:
            _check_not_wrapped(rows[0])
        raise DataError(f"{rows[0].place}: {err}", hint=err.hint) from None
    return _parse_rows(rows, parse)


def read_rows(path: Path) -> list[Row]:
    """Read the raw rows of a file, a saved data set or a Hub data set, whatever their columns."""
    if tables.is_hub_name(path):
        return tables.hub_rows(path)
    if tables.is_saved_dataset(path):
        return tables.saved_rows(path)
    if tables.is_parquet(path):
        return tables.parquet_rows(path)
    text = _read_text(path)
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{path}: is empty", hint="write one row for each example")
    if path.suffix.lower() in {".csv", ".tsv"}:
        return _csv_rows(text, path)
    if start == "[":
        return list(_array_rows(text, path))
    if start == "{" or path.suffix.lower() in {".json", ".jsonl"}:
        return list(_line_rows(text, path))
    return _csv_rows(text, path)


def _parse_rows(rows: list[Row], parse: RowParser) -> Dataset:
    examples: list[Example] = []
    bad: list[tuple[str, DataError]] = []
    num_cut = num_unanswered = 0
    for row in rows:
        try:
            whole = parse.parse_whole(row.value)
        except DataError as err:
            bad.append((row.place, err))
            continue
        messages = up_to_last_answer(whole)
        if messages:
            examples.append(Example(messages, row.place))
        num_unanswered += not messages
        num_cut += 0 < len(messages) < len(whole)
    if bad:
        raise _first_of(bad)
    if not examples:
        raise DataError(
            f"{rows[0].place}: no assistant turn, here or in any other row",
            hint="give the dialogues answers: there is nothing to learn in questions alone",
        )
    return Dataset(examples, parse.format, num_cut, num_unanswered)


def _first_of(bad: list[tuple[str, DataError]]) -> DataError:
    """Name the first bad row, and count those with the same fault (the same words up to what was found)."""
    place, first = bad[0]
    faults = [INDEX.sub("[]", str(err).partition(", got ")[0]) for _, err in bad]
    others = faults.count(faults[0]) - 1
    more = f" (and {others} more row{'s' if others > 1 else ''} like it)" if others else ""
    return DataError(f"{place}: {first}{more}", hint=first.hint)


def _check_objects(rows: list[Row]) -> None:
    bad = [
        (
            row.place,
            DataError(
                f"a row must be an object with named columns, "
                f"got {_shortened(json.dumps(row.value, ensure_ascii=False))}",
                hint='write each row like {"prompt": "...", "response": "..."}',
            ),
        )
        for row in rows
        if not isinstance(row.value, dict)
    ]
    if bad:
        raise _first_of(bad)


def _check_not_wrapped(row: Row) -> None:
    """Refuse one object around all rows, `{"data": [{...}, ...]}`."""
    for name, value in row.value.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            raise DataError(
                f"{row.place}: one object around everything, with {len(value)} objects under {name!r}",
                hint=f"if those are the rows, keep only the array under {name!r}: the file begins with '['",
            )


# Bytes -> text


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as err:
        raise _unreadable(path, err) from err
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise DataError(
                f"{path}:1: begins with the bytes {mark.hex(' ')}: the file is {name}",
                hint="save it as plain UTF-8, without BOM (or 'signature'), in your editor",
            )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as err:
        raise _not_utf8(path, content, err.start) from None


def _unreadable(path: Path, err: OSError) -> DataError:
    if path.is_dir():
        names = ", ".join(_names_in(path)[:5])
        return DataError(
            f"{path}: is a folder, a file is needed",
            hint=f"name one of its files: {names}" if names else "the folder holds no files",
        )
    return DataError(f"{path}: cannot be read: {err.strerror or err}", hint=_reading_hint(path, err))


def _reading_hint(path: Path, err: OSError) -> str:
    if not isinstance(err, FileNotFoundError):
        return "check its permissions and the disk"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}{tables.hub_hint(path)}"
    near = get_close_matches(path.name, _names_in(path.parent), n=1)
    return f"did you mean {path.with_name(near[0])}?" if near else f"there is no such file in {path.parent}"


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(child.name for child in folder.iterdir() if child.is_file())
    except OSError:  # the folder itself cannot be read: nothing to suggest
        return []


def _not_utf8(path: Path, content: bytes, position: int) -> DataError:
    line = content.count(b"\n", 0, position) + 1
    where = f"{path}:{line}: byte {position + 1} of the file (0x{content[position]:02x}) is not UTF-8"
    try:
        content.decode("gb18030")
    except UnicodeDecodeError:
        return DataError(where, hint="save the file as UTF-8 text: JSON, JSON lines or CSV")
    return DataError(
        f"{where}; as GBK it can be read",
        hint=f"convert it: iconv -f GB18030 -t UTF-8 {path.name} > {path.stem}.utf8{path.suffix}",
    )


# JSON lines


def _line_rows(text: str, path: Path) -> Iterator[Row]:
    """Yield one row a line; blank lines are passed over."""
    decode = json.JSONDecoder().decode
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.isspace():
            continue
        try:
            yield Row(f"{path}:{number}", decode(line))
        except json.JSONDecodeError as err:
            _check_not_spread(text, path, number)
            raise _bad_line(err, line, path, number) from None
        except RecursionError:
            raise _too_deep(f"{path}:{number}") from None


def _check_not_spread(text: str, path: Path, number: int) -> None:
    """Tell a broken line from an object that is written over several lines."""
    start = sum(len(line) + 1 for line in text.split("\n", number - 1)[: number - 1])
    try:
        value, end = json.JSONDecoder().raw_decode(text, _skip_space(text, start))
    except (json.JSONDecodeError, RecursionError):
        return
    if "\n" not in text[start:end].strip():
        return
    place = f"{path}:{number}"
    if number == 1 and isinstance(value, dict):
        _check_not_wrapped(Row(place, value))
    raise DataError(
        f"{place}: an object spread over several lines, outside an array",
        hint="write one row a line, or all rows as one array: [ {...}, {...} ]",
    )


def _bad_line(err: json.JSONDecodeError, line: str, path: Path, number: int) -> DataError:
    if err.msg == "Extra data" and err.pos:
        return DataError(
            f"{path}:{number}: column {err.pos + 1}: text after the row's end: {_excerpt(line[err.pos :])}",
            hint="write one row a line with nothing between the lines, or all rows as one array with [ and ]",
        )
    return _broken_json(err.msg, line, err.pos, place=f"{path}:{number}", line_start=0)


# A JSON array


def _array_rows(text: str, path: Path) -> Iterator[Row]:
    """Yield the rows of an array, each with the line of its first character."""
    decode = json.JSONDecoder().raw_decode
    position = _skip_space(text, text.index("[") + 1)
    line, counted, index = 1, 0, 0
    while text[position : position + 1] != "]" or index:
        line, counted = line + text.count("\n", counted, position), position
        index += 1
        place = f"{path}:{line} (row {index})"
        try:
            value, end = decode(text, position)
        except json.JSONDecodeError as err:
            raise _bad_element(err, text, path, index) from None
        except RecursionError:
            raise _too_deep(place) from None
        yield Row(place, value)
        position = _skip_space(text, end)
        if text[position : position + 1] != ",":
            break
        position = _skip_space(text, position + 1)
    _check_array_end(text, position, path, index)


def _bad_element(err: json.JSONDecodeError, text: str, path: Path, index: int) -> DataError:
    line, line_start = _line_of(text, err.pos)
    place = f"{path}:{line}"
    if text[err.pos : err.pos + 1] == "]" and index > 1:
        return DataError(
            f"{place}: column {err.pos - line_start + 1}: a comma after the last row",
            hint="remove the comma before the closing ]",
        )
    if not text[err.pos :].strip():
        return DataError(
            f"{place}: column {err.pos - line_start + 1}: the file ends inside row {index}",
            hint="the file is cut off: fetch it again, or close the row and the array with ]",
        )
    return _broken_json(err.msg, text, err.pos, place=place, line_start=line_start)


def _check_array_end(text: str, position: int, path: Path, index: int) -> None:
    line, line_start = _line_of(text, position)
    place = f"{path}:{line}: column {position - line_start + 1}"
    found = text[position : position + 1]
    if found == "]":
        rest = _skip_space(text, position + 1)
        if rest < len(text):
            line, line_start = _line_of(text, rest)
            raise DataError(
                f"{path}:{line}: column {rest - line_start + 1}: text after the array's end: "
                f"{_excerpt(text[rest:])}",
                hint="put all rows into one array, or write one row a line without [ and ]",
            )
        return
    if not found:
        raise DataError(f"{place}: the array is not closed after row {index}", hint="add ] at the end")
    if found == "{":
        raise DataError(
            f"{place}: a comma is missing between rows {index} and {index + 1}",
            hint="write a comma after each row but the last",
        )
    raise _broken_json("Expecting ',' or ']'", text, position, place=f"{path}:{line}", line_start=line_start)


# What is wrong with JSON


def _broken_json(reason: str, text: str, position: int, *, place: str, line_start: int) -> DataError:
    """Say line, column and the offending text; name the usual culprits."""
    if text[position : position + 1] not in CULPRITS:
        position = _curly_quote(text, line_start) or position
    found = text[position:].split("\n", 1)[0]
    culprit = CULPRITS.get(found[:1])
    what = culprit or f"{reason[:1].lower()}{reason[1:].removesuffix(' at').removesuffix(' starting')}"
    at = _excerpt(found) if found.strip() else "the end of the line"
    return DataError(
        f"{place}: column {position - line_start + 1}: broken JSON: {what}, at {at}",
        hint=_json_hint(reason, found),
    )


def _curly_quote(text: str, line_start: int) -> int | None:
    """Where, in the line that begins at a position, a curly quote stands for a straight one."""
    line = text[line_start:].split("\n", 1)[0]
    place = CURLY_QUOTE.search(line)
    quote = place and CURLY_QUOTES.search(line, place.start())
    return quote and line_start + quote.start()


def _json_hint(reason: str, found: str) -> str:
    if found[:1] in CULPRITS:
        return "replace it, and all like it, in your editor"
    if reason.startswith("Invalid control character"):
        return r"write a line break inside text as \n and a tab as \t"
    if reason.startswith("Unterminated string"):
        return r"close the text with a quote, on its own line: a line break inside text is written \n"
    if reason.startswith("Invalid \\escape"):
        return r"write a backslash as \\"
    return 'correct this place; each row is like {"prompt": "...", "response": "..."}'


def _too_deep(place: str) -> DataError:
    return DataError(f"{place}: lists or objects nested too deeply", hint="is this a file of examples?")


def _line_of(text: str, position: int) -> tuple[int, int]:
    """Give the line number of a position, and the position of that line's first character."""
    return text.count("\n", 0, position) + 1, text.rfind("\n", 0, position) + 1


def _skip_space(text: str, position: int) -> int:
    found = SPACE.match(text, position)
    return found.end() if found else position


def _excerpt(text: str) -> str:
    return repr(_shortened(text))


def _shortened(text: str) -> str:
    return text if len(text) <= CONTEXT_CHARACTERS else text[:CONTEXT_CHARACTERS] + "..."


# CSV


def _csv_rows(text: str, path: Path) -> list[Row]:
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
        if not record:
            continue
        if header is None:
            header = _csv_header(record, place)
            continue
        if len(record) != len(header):
            raise DataError(
                f"{place}: {len(record)} cells, but the header names {len(header)} columns",
                hint='put text that holds a comma in double quotes: "..."',
            )
        yield Row(place, dict(zip(header, record, strict=True)))


def _csv_header(record: list[str], place: str) -> list[str]:
    twice = {name for name in record if record.count(name) > 1}
    if twice:
        raise DataError(
            f"{place}: the header names {sorted(twice)[0]!r} twice", hint="give each column its own name"
        )
    if len(record) < 2:
        raise DataError(
            f"{place}: neither JSON nor a CSV header with several columns: {_excerpt(record[0])}",
            hint="write a JSON array, JSON lines, or CSV whose first line names the columns",
        )
    return record
