"""Decode the bytes of a file to text: by its byte-order mark, else as UTF-8 or as the settings say.

Files that are not text are recognised by their first bytes, and refused with advice on what to do.
"""

import codecs
import re
import shlex
from pathlib import PurePath
from typing import NamedTuple

UTF8 = "utf-8"
AUTO = "auto"
"""The value of `data.charset` with which each file's character set is recognised."""
MARKS = {
    codecs.BOM_UTF8: UTF8,
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks; those of UTF-32 first, as they begin with UTF-16's. Source: unicode.org/faq/utf_bom."""
MARK = "\ufeff"
SHEET = "save the sheet as CSV (UTF-8)"
UNPACK = "unpack it first"
NEEDED = "this needs JSON, CSV or YAML"
LFS_POINTER = b"version https://git-lfs"
"""First bytes of the text that git-lfs keeps for a file. Source: github.com/git-lfs/git-lfs, docs/spec.md."""
KINDS = {
    b"PK\x05\x06": ("an empty zip archive", "is it the right file?"),
    b"\xd0\xcf\x11\xe0": ("an old Office file, such as .xls", SHEET),
    b"\x1f\x8b": ("a gzip archive", "unpack it: gunzip -c {name} > {unpacked}"),
    b"BZh": ("a bzip2 archive", "unpack it: bunzip2 -c {name} > {unpacked}"),
    b"\xfd7zXZ": ("an xz archive", "unpack it: xz -dc {name} > {unpacked}"),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", "unpack it: zstd -dc {name} > {unpacked}"),
    b"7z\xbc\xaf": ("a 7z archive", UNPACK),
    b"Rar!": ("a rar archive", UNPACK),
    b"%PDF": ("a PDF document", "copy its questions and answers into rows of JSON or CSV"),
    b"\x89PNG": ("a PNG picture", NEEDED),
    b"\xff\xd8\xff": ("a JPEG picture", NEEDED),
    b"PAR1": ("a parquet file", "give it a name that ends with .parquet"),
    b"ARROW1": ("an Arrow file", "write its table as parquet or JSON lines"),
    b"SQLite format 3": ("an SQLite database", "write its table as CSV or JSON lines"),
    b"\x89HDF": ("an HDF5 file", "write its table as CSV or JSON lines"),
    b"\x80\x03": ("a Python pickle", "write its rows as JSON lines, with json.dumps"),
    b"\x80\x04": ("a Python pickle", "write its rows as JSON lines, with json.dumps"),
    b"\x80\x05": ("a Python pickle", "write its rows as JSON lines, with json.dumps"),
    LFS_POINTER: ("a git-lfs pointer, not the file itself", "run `git lfs pull` in its folder"),
}
"""First bytes of files -> kind and advice. Source: en.wikipedia.org/wiki/List_of_file_signatures."""
ZIP = b"PK\x03\x04"
PACKED = {
    b"xl/": ("an Excel sheet (.xlsx)", SHEET),
    b"word/": ("a Word document (.docx)", "copy its questions and answers into rows of JSON or CSV"),
    b"ppt/": ("PowerPoint slides (.pptx)", NEEDED),
}
"""A folder inside a zip archive -> the archive's kind, and the advice."""
TAR = slice(257, 262)
"""Position of a tar archive's signature, `ustar`; its first bytes are the name of a file in it."""
PACKED_SUFFIXES = {".gz", ".bz2", ".xz", ".zst"}
NULS_OF_UTF16 = 0.05
"""JSON or CSV in UTF-16 has a larger share of zero bytes, from its ASCII characters; in UTF-8 it has none."""
NULS_ON_ONE_SIDE = 0.9
"""Least share of the zero bytes that are all at even, or all at odd, positions."""
RECOGNISED = {
    "gb18030": ("gb2312", {0xA1, 0xA3, *range(0xB0, 0xD8)}),
    "big5": ("big5", {*range(0xA1, 0xC7)}),
    "euc_kr": ("euc_kr", {0xA1, 0xA3, *range(0xB0, 0xC9)}),
    "euc_jp": ("euc_jp", {0xA1, 0xA3, 0xA4, 0xA5, *range(0xB0, 0xD0)}),
    "shift_jis": ("shift_jis", {*range(0x81, 0x84), *range(0x88, 0x99)}),
}
"""Character sets that are recognised -> the plain set inside each, and the first bytes that punctuation and
frequent characters have in it. Source: level 1 of GB 2312-1980, Big5 (1984) and JIS X 0208; KS X 1001."""
COMMON_SHARE = 0.6
"""Least share of frequent characters among those beyond ASCII: traditional Chinese in GBK has some 0.7, text
in a wrong set 0.5."""
SAMPLE = 20_000
"""Characters, from the start of a file, by which its character set is recognised."""
# control characters, private use and replacement characters: signs of bytes decoded in a wrong set
UNPRINTED = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd\uffff]")
NO_FILE = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem"}
"""Python's codecs that no text file is written in, or that mean another character set on each machine."""
KNOWN = "utf-8, auto, gb18030, gbk, big5, utf-16, utf-16-le, utf-16-be or another that Python knows"


class NotTextError(ValueError):
    """A file is not text, or not in the expected character set; `line` is the first line at fault."""

    def __init__(self, what: str, *, hint: str, line: int = 1) -> None:
        super().__init__(what)
        self.hint, self.line = hint, line


class Decoded(NamedTuple):
    """The text of a file, without its byte-order mark, and the character set that it was read in."""

    text: str
    charset: str


def find_codec(name: str) -> str | None:
    """Return Python's name of a character set; None for an unknown name, and for a codec of another kind."""
    try:
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        return None
    is_text = getattr(codec, "_is_text_encoding", True)
    return codec.name if is_text and codec.name.replace("-", "_") not in NO_FILE else None


def decode_text(content: bytes, name: str) -> str:
    """Decode a file of a model or a run, which must be UTF-8; without its byte-order mark.

    Raises `NotTextError`; `name` is the file's name, for the hint.
    """
    _check_kind(content, name)
    codec = _codec_of_mark(content) or _unmarked_utf16(content)
    if codec not in (None, UTF8):
        raise NotTextError(_describe_start(content, _spell(codec)), hint=_hint_to_convert(codec, name))
    return _decode_utf8(content, name, charset=None)


def decode_given(content: bytes, name: str, charset: str | None = None) -> Decoded:
    """Decode a file that a user has written: by its byte-order mark, else in the set `charset` or as UTF-8.

    `charset` is the setting `data.charset`, which hints then name; without it they say how to convert the
    file. Raises `NotTextError`.
    """
    _check_kind(content, name)
    if codec := _codec_of_mark(content):
        return Decoded(_decode(codec, content), codec)
    if charset not in (None, AUTO) and find_codec(charset) not in (UTF8, "utf-8-sig"):
        # many sets decode any bytes, into nonsense; bytes that are valid UTF-8 are hardly ever anything else
        if not content.isascii() and 0 not in content[:512] and _is_utf8(content):
            raise NotTextError(
                f"is UTF-8, which data.charset={charset} would misread",
                hint=f"data.charset={AUTO} takes each file as it is",
            )
        return Decoded(_decode(charset, content), find_codec(charset) or charset)
    codec = _unmarked_utf16(content)
    if codec is None:
        if charset != AUTO or _is_utf8(content):
            return Decoded(_decode_utf8(content, name, charset), UTF8)
        codec = _recognise(content)
    if codec and charset == AUTO:
        return Decoded(_decode(codec, content), codec)
    if codec:
        raise NotTextError(_describe_start(content, _spell(codec)), hint=_hint_to_read(codec, name, charset))
    return Decoded(_decode_utf8(content, name, charset), UTF8)  # raises: no set was recognised


def wide_codec(start: bytes, name: str) -> str | None:
    """Return the codec of a text in UTF-16 or UTF-32 by its first bytes, None for any other text.

    Raises `NotTextError` for an archive, a picture and the like; `name` is the file's name, for the hint.
    """
    _check_kind(start, name)
    codec = _codec_of_mark(start)
    return None if codec == UTF8 else codec or _unmarked_utf16(start)


def decode_any(lines: bytes) -> str:
    """Decode lines for reading: as UTF-8, else in a set that is recognised, else with U+FFFD."""
    try:
        return lines.decode(UTF8)
    except UnicodeDecodeError:
        # a terminal's escapes are no sign of a wrong set
        return lines.decode(_recognise(lines.replace(b"\x1b", b"")) or UTF8, errors="replace")


# Recognising bytes


def _check_kind(content: bytes, name: str) -> None:
    """Raise `NotTextError` for an archive, a picture, a database or another kind of file that is not text."""
    kind = next((kind for start, kind in KINDS.items() if content.startswith(start)), None)
    if content.startswith(ZIP):
        kind = next((kind for part, kind in PACKED.items() if part in content), ("a zip archive", UNPACK))
    if content[TAR] == b"ustar":
        kind = "a tar archive", UNPACK
    if kind is not None:
        title, cure = kind
        path = PurePath(name)
        # rows.jsonl.gz -> rows.jsonl; a file of another name must not be written over: rows.unpacked.jsonl
        is_packed = path.suffix.lower() in PACKED_SUFFIXES
        unpacked = path.with_suffix("") if is_packed else path.with_suffix(f".unpacked{path.suffix}")
        words = {"name": shlex.quote(name), "unpacked": shlex.quote(str(unpacked))}
        raise NotTextError(_describe_start(content, title), hint=cure.format(**words))


def _describe_start(content: bytes, kind: str) -> str:
    return f"begins with the bytes {content[:4].hex(' ')}: the file is {kind}"


def _codec_of_mark(content: bytes) -> str | None:
    return next((codec for mark, codec in MARKS.items() if content.startswith(mark)), None)


def _unmarked_utf16(content: bytes) -> str | None:
    """Return the byte order of UTF-16 without a mark, else None. Raises `NotTextError` for other zero bytes.

    An ASCII character is two bytes in UTF-16, one of them zero: the second in little endian.
    """
    start = content[:512]
    zeros = start.count(0)  # bytes; 512 of them tell, and a long file is not read through
    if zeros <= NULS_OF_UTF16 * len(start):
        return None
    odd = start[1::2].count(0)
    if max(odd, zeros - odd) < NULS_ON_ONE_SIDE * zeros:
        raise NotTextError(
            _describe_start(content, "no text: it holds zero bytes"),
            hint="is it the right file? Fetch it again",
        )
    return "utf-16-le" if odd > zeros - odd else "utf-16-be"


def _recognise(content: bytes) -> str | None:
    """Return the East Asian character set of a text, None if it is in doubt.

    Text read in a wrong set has more rare characters: the set with the most frequent ones is the right one.
    """
    shares: dict[str, float] = {}
    for codec, (plain, first_bytes) in RECOGNISED.items():
        try:
            text = content.decode(codec)
        except UnicodeDecodeError:
            continue
        if UNPRINTED.search(text):
            continue
        wide = [character for character in text[:SAMPLE] if not character.isascii()]
        num_frequent = sum(_first_byte(character, plain) in first_bytes for character in wide)
        shares[codec] = num_frequent / max(len(wide), 1)
    most = max(shares.values(), default=0.0)
    best = [codec for codec, share in shares.items() if share == most]
    return best[0] if most >= COMMON_SHARE and len(best) == 1 else None


def _first_byte(character: str, codec: str) -> int | None:
    try:
        return character.encode(codec)[0]
    except UnicodeEncodeError:
        return None


# Decoding


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode(UTF8)
    except UnicodeDecodeError:
        return False
    return True


def _decode_utf8(content: bytes, name: str, charset: str | None) -> str:
    try:
        return content.decode(UTF8).lstrip(MARK)
    except UnicodeDecodeError as err:
        line, fault = _describe_byte(content, err.start)
    codec = _recognise(content)
    if codec is not None:
        what = f"{fault}; as {_spell(codec)} it can be read"
        raise NotTextError(what, hint=_hint_to_read(codec, name, charset), line=line)
    hint = "save the file as UTF-8 text"
    if charset:
        hint += ", or name its character set, such as data.charset=gb18030 or cp1252"
    raise NotTextError(fault, hint=hint, line=line)


def _decode(codec: str, content: bytes) -> str:
    try:
        return content.decode(codec).lstrip(MARK)
    except UnicodeDecodeError as err:
        line, fault = _describe_byte(content, err.start, _spell(codec))
    hint = f"fetch the file again, or name its character set: data.charset={AUTO} tries to tell it"
    raise NotTextError(fault, hint=hint, line=line)


def _describe_byte(content: bytes, position: int, kind: str = "UTF-8") -> tuple[int, str]:
    """Return the line of a byte that cannot be decoded, and the words that name the byte."""
    line = content.count(b"\n", 0, position) + 1
    return line, f"byte {position + 1} of the file (0x{content[position]:02x}) is not {kind}"


def _spell(codec: str) -> str:
    """Return the name of a character set for a message."""
    kind = {"gb18030": "GBK"}.get(codec, codec.upper())
    unmarked = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}.get(codec)
    if unmarked:
        return f"{unmarked} text without a byte-order mark"
    return f"{kind} text" if codec in MARKS.values() else kind


def _hint_to_read(codec: str, name: str, charset: str | None) -> str:
    return f"data.charset={codec} reads it as that" if charset else _hint_to_convert(codec, name)


def _hint_to_convert(codec: str, name: str) -> str:
    target = PurePath(name).with_suffix(f".utf8{PurePath(name).suffix}")
    source = codec.upper().replace("16-", "16")  # iconv spells UTF-16LE, Python utf-16-le
    return f"convert it: iconv -f {source} -t UTF-8 {shlex.quote(name)} > {shlex.quote(str(target))}"
