"""JSON lines and JSON arrays -> rows with the line where each begins; what is broken, and its cure."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmtune.charset import MARK
from glmtune.data.columns import carries_meaning
from glmtune.data.tables import RawRow
from glmtune.data.unknown import ROW_FORM, column_of, dialogue_of
from glmtune.errors import DataError
from glmtune.strict import Decoder, KeyTwiceError, UnfitJsonError

CONTEXT_CHARACTERS = 20
SPACE = re.compile(r"[ \t\r\n]*")
# A curly quote that stands where JSON has a straight one: around a key, or at either end of a value.
CURLY_QUOTE = re.compile(
    r"""[{,]\s*(?:[“”„‟][^"“”]*["“”]|"[^"“”]*[“”])\s*:|"\s*:\s*[“”„‟]|[“”]\s*\}\s*,?\s*$""", re.MULTILINE
)
COMMENTS = ("//", "/*", "#")
PYTHONS_WORDS = {"None": "null", "True": "true", "False": "false", "nan": "null"}
PYTHONS = re.compile(rf"\b(?:{'|'.join(PYTHONS_WORDS)})\b")
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


# One row a line


def line_rows(text: str, path: Path) -> Iterator[RawRow]:
    """Yield one row a line; blank lines are passed over. Lines may end as on old Macs."""
    if "\n" not in text:
        text = text.replace("\r", "\n")
    decode = Decoder().decode
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.isspace():
            continue
        try:
            yield RawRow(f"{path}:{number}", decode(line.removeprefix(MARK)))
        except UnfitJsonError as err:
            raise _unfit(err, f"{path}:{number}", err.pos) from None
        except json.JSONDecodeError as err:
            value = _spread(text, path, number)
            if value is None:
                raise _bad_line(err, line, path, number) from None
            yield RawRow(f"{path}:{number}", value)
            return


def _spread(text: str, path: Path, number: int) -> Any:
    """The one object around all rows, written over several lines; None for a broken line.

    Raises `DataError` for any other object that is written so.
    """
    start = sum(len(line) + 1 for line in text.split("\n", number - 1)[: number - 1])
    try:
        value, end = Decoder().raw_decode(text, _skip_space(text, start))
    except UnfitJsonError as err:
        raise _unfit(err, f"{path}:{err.lineno}", err.colno - 1) from None
    except json.JSONDecodeError:
        return None
    if "\n" not in text[start:end].strip():
        return None
    row = RawRow(f"{path}:{number}", value)
    if isinstance(value, dict) and not text[:start].strip() and not text[end:].strip():
        check_not_wrapped(row)
        if wrapped_rows(row):
            return value
    raise DataError(
        f"{row.where}: an object spread over several lines, outside an array",
        hint="write one row a line, or all rows as one array: [ {...}, {...} ]",
    )


def _bad_line(err: json.JSONDecodeError, line: str, path: Path, number: int) -> DataError:
    if err.msg == "Extra data" and err.pos:
        return DataError(
            f"{path}:{number}: column {err.pos + 1}: text after the row's end: {excerpt(line[err.pos :])}",
            hint="write one row a line with nothing between the lines, or all rows as one array with [ and ]",
        )
    return _broken_json(err.msg, line, err.pos, where=f"{path}:{number}", line_start=0)


# A JSON array


def array_rows(text: str, path: Path) -> Iterator[RawRow]:
    """Yield the rows of an array, each with the line of its first character."""
    decode = Decoder().raw_decode
    position = _skip_space(text, text.index("[") + 1)
    line, counted, index = 1, 0, 0
    while text[position : position + 1] != "]" or index:
        line, counted = line + text.count("\n", counted, position), position
        index += 1
        where = f"{path}:{line} (row {index})"
        try:
            value, end = decode(text, position)
        except UnfitJsonError as err:
            raise _unfit(err, f"{path}:{err.lineno} (row {index})", err.colno - 1) from None
        except json.JSONDecodeError as err:
            raise _bad_element(err, text, path, index) from None
        yield RawRow(where, value)
        position = _skip_space(text, end)
        if text[position : position + 1] != ",":
            break
        position = _skip_space(text, position + 1)
    _check_array_end(text, position, path, index)


def _bad_element(err: json.JSONDecodeError, text: str, path: Path, index: int) -> DataError:
    line, line_start = _line_of(text, err.pos)
    where = f"{path}:{line}"
    if text[err.pos : err.pos + 1] == "]" and index > 1:
        return DataError(
            f"{where}: column {err.pos - line_start + 1}: a comma after the last row",
            hint="remove the comma before the closing ]",
        )
    if not text[err.pos :].strip():
        return DataError(
            f"{where}: column {err.pos - line_start + 1}: the file ends inside row {index}",
            hint="the file is cut off: fetch it again, or close the row and the array with ]",
        )
    return _broken_json(err.msg, text, err.pos, where=where, line_start=line_start)


def _check_array_end(text: str, position: int, path: Path, index: int) -> None:
    line, line_start = _line_of(text, position)
    where = f"{path}:{line}: column {position - line_start + 1}"
    found = text[position : position + 1]
    if found == "]":
        rest = _skip_space(text, position + 1)
        if rest < len(text):
            line, line_start = _line_of(text, rest)
            raise DataError(
                f"{path}:{line}: column {rest - line_start + 1}: text after the array's end: "
                f"{excerpt(text[rest:])}",
                hint=_hint_of_arrays(text),
            )
        return
    if not found:
        raise DataError(f"{where}: the array is not closed after row {index}", hint="add ] at the end")
    if found == "{":
        raise DataError(
            f"{where}: a comma is missing between rows {index} and {index + 1}",
            hint="write a comma after each row but the last",
        )
    raise _broken_json("Expecting ',' or ']'", text, position, where=f"{path}:{line}", line_start=line_start)


def _hint_of_arrays(text: str) -> str:
    """What to do about an array that is not all: about an array a line, by what the first holds."""
    first, _ = Decoder().raw_decode(text, text.index("["))
    column = dialogue_of(first[0]) if first else None
    if column:
        return f'write each dialogue as a row: {{"{column}": [...]}}'
    if first and not isinstance(first[0], dict):
        return f"write each line as a row: {ROW_FORM}"
    return "put all rows into one array, or write one row a line without [ and ]"


# What is wrong with JSON


def _unfit(err: UnfitJsonError, where: str, column: int) -> DataError:
    where, found = f"{where}: column {column + 1}", excerpt(err.doc[err.pos :])
    if not isinstance(err, KeyTwiceError):
        return DataError(f"{where}: {err.msg}, at {found}", hint=err.hint)
    return DataError(
        f"{where}: {err.msg}, again at {found}",
        hint=f"{err.hint}; if two rows run together here, write the lost }},{{ between them",
    )


def _broken_json(reason: str, text: str, position: int, *, where: str, line_start: int) -> DataError:
    """Say line, column and the offending text; name the usual culprits."""
    if text[position : position + 1] not in CULPRITS:
        position = _curly_quote(text, line_start) or position
    found = text[position:].split("\n", 1)[0]
    culprit = CULPRITS.get(found[:1])
    what = culprit or f"{reason[:1].lower()}{reason[1:].removesuffix(' at').removesuffix(' starting')}"
    at = excerpt(found) if found.strip() else "the end of the line"
    return DataError(
        f"{where}: column {position - line_start + 1}: broken JSON: {what}, at {at}",
        hint=_json_hint(reason, found),
    )


def _curly_quote(text: str, line_start: int) -> int | None:
    """Where, in the line that begins at a position, a curly quote stands for a straight one."""
    line = text[line_start:].split("\n", 1)[0]
    where = CURLY_QUOTE.search(line)
    quote = where and CURLY_QUOTES.search(line, where.start())
    return quote and line_start + quote.start()


def _json_hint(reason: str, found: str) -> str:
    if found[:1] == "'":
        return "write each row with Python's json.dumps(row, ensure_ascii=False), or replace the quotes"
    if found[:1] in CULPRITS:
        return "replace it, and all like it, in your editor"
    if found.startswith(COMMENTS):
        return "JSON has no comments: remove the line"
    if not found.strip():
        return "the row ends too early: complete it, or remove it; if the file ends here too, fetch it again"
    if reason.startswith("Invalid control character"):
        return r"write a line break inside text as \n and a tab as \t"
    if reason.startswith("Unterminated string"):
        return r"close the text with a quote, on its own line: a line break inside text is written \n"
    if reason.startswith("Invalid \\escape"):
        return r"write a backslash as \\"
    if found[:1] in ("}", "]") or reason.startswith("Illegal trailing comma"):
        return f"remove the comma before {found.lstrip(', ')[:1]}"
    if word := PYTHONS.match(found):
        return f"JSON writes {PYTHONS_WORDS[word[0]]}; Python's json.dumps writes rows so"
    return f"correct this place; each row is like {ROW_FORM}"


def _line_of(text: str, position: int) -> tuple[int, int]:
    """Give the line number of a position, and the position of that line's first character."""
    return text.count("\n", 0, position) + 1, text.rfind("\n", 0, position) + 1


def _skip_space(text: str, position: int) -> int:
    found = SPACE.match(text, position)
    return found.end() if found else position


def excerpt(text: str) -> str:
    """The beginning of a text, in quotes."""
    return repr(shortened(text))


def shortened(text: str) -> str:
    """The text, or its beginning with dots."""
    return text if len(text) <= CONTEXT_CHARACTERS else text[:CONTEXT_CHARACTERS] + "..."


def check_not_wrapped(row: RawRow) -> None:
    """Refuse one object around objects with names: `{"a": {...}, "b": {...}}`."""
    if row.value and all(isinstance(value, dict) for value in row.value.values()):
        raise DataError(
            f"{row.where}: one object around everything, with an object under each of its "
            f"{len(row.value)} names: {shortened(', '.join(row.value))}",
            hint="if those are the rows, keep the objects without the names, as an array: [ {...}, {...} ]",
        )


def wrapped_rows(row: RawRow) -> str | None:
    """The name of the one list in an object around everything, `{"data": [{...}, ...]}`, if it is of rows."""
    names = [name for name, value in row.value.items() if isinstance(value, list)]
    rows = row.value[names[0]] if len(names) == 1 else []
    is_rows = bool(rows) and all(isinstance(item, dict) for item in rows) and column_of(rows[0]) is None
    is_rows = is_rows and not carries_meaning(names[0])
    return names[0] if is_rows else None


def check_not_columns(row: RawRow) -> None:
    """Refuse a table written column by column: `{"prompt": [...], "response": [...]}`, or numbered cells."""
    cells = list(row.value.values())
    is_lists = all(isinstance(cell, list) and len(cell) > 1 and column_of(cell[0]) is None for cell in cells)
    is_numbered = all(isinstance(cell, dict) and [*cell] == [*map(str, range(len(cell)))] for cell in cells)
    if len(cells) > 1 and (is_lists or is_numbered) and len({*map(len, cells)}) == 1:
        raise DataError(
            f"{row.where}: a table column by column: {shortened(', '.join(row.value))}",
            hint="write a row a line; pandas does: "
            "df.to_json('rows.jsonl', orient='records', lines=True, force_ascii=False)",
        )
