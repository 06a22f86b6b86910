"""Read JSON lines and arrays: rows with the line where each begins, errors that say how to mend the file."""

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
"""Characters of a file that an error quotes."""
SPACE = re.compile(r"[ \t\r\n]*")
# A curly quote in the position of JSON's straight one: around a key, or at either end of a value.
CURLY_QUOTE = re.compile(
    r"""[{,]\s*(?:[“”„‟][^"“”]*["“”]|"[^"“”]*[“”])\s*:|"\s*:\s*[“”„‟]|[“”]\s*\}\s*,?\s*$""", re.MULTILINE
)
COMMENTS = ("//", "/*", "#")
PYTHON_WORDS = {"None": "null", "True": "true", "False": "false", "nan": "null"}
PYTHON_WORD = re.compile(rf"\b(?:{'|'.join(PYTHON_WORDS)})\b")
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
"""Characters that editors and chat programs put in the place of JSON's own."""


# One row a line


def line_rows(text: str, path: Path) -> Iterator[RawRow]:
    """Yield one row a line, skipping blank lines. Raises `DataError` for broken JSON."""
    if "\n" not in text:
        text = text.replace("\r", "\n")  # line ends of old Macs
    decode = Decoder().decode
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.isspace():
            continue
        try:
            # a mark is inside the file where files were joined
            yield RawRow(f"{path}:{number}", decode(line.removeprefix(MARK)))
        except UnfitJsonError as err:
            raise _unfit_json(err, f"{path}:{number}", err.pos) from None
        except json.JSONDecodeError as err:
            value = _decode_spread_object(text, path, number)
            if value is not None:
                yield RawRow(f"{path}:{number}", value)
                return
            if err.msg == "Extra data" and err.pos:
                after = excerpt(line[err.pos :])
                raise DataError(
                    f"{path}:{number}: column {err.pos + 1}: text after the row's end: {after}",
                    hint="write one row a line with nothing between the lines, "
                    "or all rows as one array with [ and ]",
                ) from None
            raise _broken_json(err.msg, line, err.pos, where=f"{path}:{number}", line_start=0) from None


def _decode_spread_object(text: str, path: Path, number: int) -> Any:
    """Return the one object around all rows, if it begins on line `number` and fills the file; else None.

    Raises `DataError` for any other object written over several lines.
    """
    start = sum(len(line) + 1 for line in text.split("\n", number - 1)[: number - 1])
    try:
        value, end = Decoder().raw_decode(text, _skip_space(text, start))
    except UnfitJsonError as err:
        raise _unfit_json(err, f"{path}:{err.lineno}", err.colno - 1) from None
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


# A JSON array


def array_rows(text: str, path: Path) -> Iterator[RawRow]:
    """Yield the rows of an array, each with the line of its first character. Raises `DataError`."""
    # row by row, not the whole array at once: every row, and every fault, gets its line
    decode = Decoder().raw_decode
    position = _skip_space(text, text.index("[") + 1)
    line, counted, index = 1, 0, 0
    # `or index`: [] is an array without rows, but a ] behind a comma is a fault that `decode` finds
    while text[position : position + 1] != "]" or index:
        # line breaks are counted from the last row on: counting from the start each time would be quadratic
        line, counted = line + text.count("\n", counted, position), position
        index += 1
        where = f"{path}:{line} (row {index})"
        try:
            value, end = decode(text, position)
        except UnfitJsonError as err:
            raise _unfit_json(err, f"{path}:{err.lineno} (row {index})", err.colno - 1) from None
        except json.JSONDecodeError as err:
            raise _bad_element(err, text, path, index) from None
        yield RawRow(where, value)
        position = _skip_space(text, end)
        if text[position : position + 1] != ",":
            break
        position = _skip_space(text, position + 1)
    _check_array_end(text, position, path, index)


def _bad_element(err: json.JSONDecodeError, text: str, path: Path, index: int) -> DataError:
    """Return the error for row `index` of an array, which is broken, missing or cut off."""
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
    """Raise `DataError` unless the array ends at a position, behind row `index`, and the file with it."""
    line, line_start = _line_of(text, position)
    where = f"{path}:{line}: column {position - line_start + 1}"
    character = text[position : position + 1]
    if character == "]":
        rest = _skip_space(text, position + 1)
        if rest == len(text):
            return
        # often one array a line: its first row tells what to write instead
        first_array, _ = Decoder().raw_decode(text, text.index("["))
        column = dialogue_of(first_array[0]) if first_array else None
        hint = "put all rows into one array, or write one row a line without [ and ]"
        if column:
            hint = f'write each dialogue as a row: {{"{column}": [...]}}'
        elif first_array and not isinstance(first_array[0], dict):
            hint = f"write each line as a row: {ROW_FORM}"
        line, line_start = _line_of(text, rest)
        raise DataError(
            f"{path}:{line}: column {rest - line_start + 1}: text after the array's end: "
            f"{excerpt(text[rest:])}",
            hint=hint,
        )
    if not character:
        raise DataError(f"{where}: the array is not closed after row {index}", hint="add ] at the end")
    if character == "{":
        raise DataError(
            f"{where}: a comma is missing between rows {index} and {index + 1}",
            hint="write a comma after each row but the last",
        )
    raise _broken_json("Expecting ',' or ']'", text, position, where=f"{path}:{line}", line_start=line_start)


# Errors of JSON, and their hints


def _unfit_json(err: UnfitJsonError, where: str, column: int) -> DataError:
    """Return the error for JSON that Python reads and glmtune refuses, such as a key written twice."""
    where, at = f"{where}: column {column + 1}", excerpt(err.doc[err.pos :])
    if not isinstance(err, KeyTwiceError):
        return DataError(f"{where}: {err.msg}, at {at}", hint=err.hint)
    return DataError(
        f"{where}: {err.msg}, again at {at}",
        hint=f"{err.hint}; if two rows run together here, write the lost }},{{ between them",
    )


def _broken_json(reason: str, text: str, position: int, *, where: str, line_start: int) -> DataError:
    """Return the error for JSON that fails at a position of the text, naming the usual culprits."""
    if text[position : position + 1] not in CULPRITS:
        # behind a curly quote Python reads on to the next straight one: the position it names is too late
        line = text[line_start:].split("\n", 1)[0]
        if (quoted := CURLY_QUOTE.search(line)) and (quote := CURLY_QUOTES.search(line, quoted.start())):
            position = line_start + quote.start() or position
    rest = text[position:].split("\n", 1)[0]
    culprit = CULPRITS.get(rest[:1])
    what = culprit or f"{reason[:1].lower()}{reason[1:].removesuffix(' at').removesuffix(' starting')}"
    at = excerpt(rest) if rest.strip() else "the end of the line"
    return DataError(
        f"{where}: column {position - line_start + 1}: broken JSON: {what}, at {at}",
        hint=_json_hint(reason, rest),
    )


def _json_hint(reason: str, rest: str) -> str:
    """Return the advice for broken JSON: `reason` is Python's message, `rest` the line from the fault on."""
    if rest[:1] == "'":
        return "write each row with Python's json.dumps(row, ensure_ascii=False), or replace the quotes"
    if rest[:1] in CULPRITS:
        return "replace it, and all like it, in your editor"
    if rest.startswith(COMMENTS):
        return "JSON has no comments: remove the line"
    if not rest.strip():
        return "the row ends too early: complete it, or remove it; if the file ends here too, fetch it again"
    if reason.startswith("Invalid control character"):
        return r"write a line break inside text as \n and a tab as \t"
    if reason.startswith("Unterminated string"):
        return r"close the text with a quote, on its own line: a line break inside text is written \n"
    if reason.startswith("Invalid \\escape"):
        return r"write a backslash as \\"
    if rest[:1] in ("}", "]") or reason.startswith("Illegal trailing comma"):
        return f"remove the comma before {rest.lstrip(', ')[:1]}"
    if word := PYTHON_WORD.match(rest):
        return f"JSON writes {PYTHON_WORDS[word[0]]}; Python's json.dumps writes rows so"
    return f"correct this place; each row is like {ROW_FORM}"


def _line_of(text: str, position: int) -> tuple[int, int]:
    """Return the line number of a position, and the position of that line's first character."""
    return text.count("\n", 0, position) + 1, text.rfind("\n", 0, position) + 1


def _skip_space(text: str, position: int) -> int:
    space = SPACE.match(text, position)
    return space.end() if space else position


def excerpt(text: str) -> str:
    """Return the beginning of a text, in quotes."""
    return repr(shortened(text))


def shortened(text: str) -> str:
    """Return the text, or its beginning with dots."""
    return text if len(text) <= CONTEXT_CHARACTERS else text[:CONTEXT_CHARACTERS] + "..."


def check_not_wrapped(row: RawRow) -> None:
    """Raise `DataError` for an object that holds only named objects: `{"a": {...}, "b": {...}}`."""
    if row.value and all(isinstance(value, dict) for value in row.value.values()):
        raise DataError(
            f"{row.where}: one object around everything, with an object under each of its "
            f"{len(row.value)} names: {shortened(', '.join(row.value))}",
            hint="if those are the rows, keep the objects without the names, as an array: [ {...}, {...} ]",
        )


def wrapped_rows(row: RawRow) -> str | None:
    """Return the name of the list of rows in an object around all, `{"data": [{...}, ...]}`, or None."""
    names = [name for name, value in row.value.items() if isinstance(value, list)]
    rows = row.value[names[0]] if len(names) == 1 else []
    # a list of turns, or one that a row has for itself (history, tools), is no list of rows
    has_rows = bool(rows) and all(isinstance(item, dict) for item in rows) and column_of(rows[0]) is None
    return names[0] if has_rows and not carries_meaning(names[0]) else None


def check_not_columns(row: RawRow) -> None:
    """Raise `DataError` for a table by columns: `{"prompt": [...], ...}` or `{"prompt": {"0": ...}, ...}`."""
    cells = list(row.value.values())
    has_lists = all(isinstance(cell, list) and len(cell) > 1 and column_of(cell[0]) is None for cell in cells)
    has_numbers = all(isinstance(cell, dict) and [*cell] == [*map(str, range(len(cell)))] for cell in cells)
    if len(cells) > 1 and (has_lists or has_numbers) and len({*map(len, cells)}) == 1:
        raise DataError(
            f"{row.where}: a table column by column: {shortened(', '.join(row.value))}",
            hint="write a row a line; pandas does: "
            "df.to_json('rows.jsonl', orient='records', lines=True, force_ascii=False)",
        )
