"""Bytes -> text: UTF-8 first, a byte-order mark decides; what is no text is told by its first bytes."""

import codecs
import re
import shlex
from pathlib import PurePath
from typing import NamedTuple

UTF8 = "utf-8"
AUTO = "auto"
MARKS = {
    codecs.BOM_UTF8: UTF8,
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks, the longer before those that they begin with. Source: unicode.org/faq/utf_bom."""
MARK = "\ufeff"
SHEET = "save the sheet as CSV (UTF-8)"
UNPACK = "unpack it first"
NEEDED = "this needs JSON, CSV or YAML"
LFS_POINTER = b"version https://git-lfs"
"""How the text begins that git leaves for a large file. Source: github.com/git-lfs/git-lfs, docs/spec.md."""
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
"""What files are that begin so, and what to do. Source: en.wikipedia.org/wiki/List_of_file_signatures."""
ZIP = b"PK\x03\x04"
PACKED = {
    b"xl/": ("an Excel sheet (.xlsx)", SHEET),
    b"word/": ("a Word document (.docx)", "copy its questions and answers into rows of JSON or CSV"),
    b"ppt/": ("PowerPoint slides (.pptx)", NEEDED),
}
"""What a zip archive is, by a folder in it."""
TAR = slice(257, 262)
PACKED_SUFFIXES = {".gz", ".bz2", ".xz", ".zst"}
NULS_OF_UTF16 = 0.05
"""JSON or CSV in UTF-16 has more zero bytes than this share; in UTF-8 it has none."""
NULS_ON_ONE_SIDE = 0.9
"""Of those zero bytes, the share at even or at odd places."""
RECOGNISED = {
    "gb18030": ("gb2312", {0xA1, 0xA3, *range(0xB0, 0xD8)}),
    "big5": ("big5", {*range(0xA1, 0xC7)}),
    "euc_kr": ("euc_kr", {0xA1, 0xA3, *range(0xB0, 0xC9)}),
    "euc_jp": ("euc_jp", {0xA1, 0xA3, 0xA4, 0xA5, *range(0xB0, 0xD0)}),
    "shift_jis": ("shift_jis", {*range(0x81, 0x84), *range(0x88, 0x99)}),
}
"""Character sets that are recognised, and where their marks and their frequent characters stand: the plain
set, and the first byte there. Source: level 1 of GB 2312-1980, Big5 (1984) and JIS X 0208; KS X 1001."""
COMMON_SHARE = 0.6
"""Of the characters beyond ASCII: traditional Chinese in GBK has some 0.7, one set read as another 0.5."""
SAMPLE = 20_000
"""Characters that are looked at to recognise a character set."""
UNPRINTED = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd\uffff]")
NO_FILE = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem"}
"""Python's codecs that no file of text is written in, or that mean another set on each machine."""
KNOWN = "utf-8, auto, gb18030, gbk, big5, utf-16, utf-16-le, utf-16-be or another that Python knows"


class NotTextError(ValueError):
    """Bytes that are no text: what they are, on which line it shows, and what to do."""

    def __init__(self, what: str, *, hint: str, line: int = 1) -> None:
        super().__init__(what)
        self.hint, self.line = hint, line


class Decoded(NamedTuple):
    """A file's text, without its byte-order mark, and the character set that it was read in."""

    text: str
    charset: str


def find_codec(name: str) -> str | None:
    """Python's name for a character set; None for an unknown one, and for a codec that is none."""
    try:
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        return None
    is_text = getattr(codec, "_is_text_encoding", True)
    return codec.name if is_text and codec.name.replace("-", "_") not in NO_FILE else None


def decode_text(content: bytes, name: str) -> str:
    """UTF-8 text without its byte-order mark, as the files of a model or a run are written.

    Raises `NotTextError`; `name` is the file's, for the hint.
    """
    _check_kind(content, name)
    codec = _marked(content) or _unmarked_utf16(content)
    if codec not in (None, UTF8):
        raise NotTextError(_begins(content, _spelled(codec)), hint=_converting(codec, name))
    return _utf8(content, name, charset=None)


def decode_given(content: bytes, name: str, charset: str | None = None) -> Decoded:
    """Text of a file that a user has written: UTF-8, or what its byte-order mark says.

    `charset`: the setting of that name, which hints speak of; without it they say how to convert the file.
    Raises `NotTextError`.
    """
    _check_kind(content, name)
    if codec := _marked(content):
        return Decoded(_as(codec, content), codec)
    if charset not in (None, AUTO) and find_codec(charset) not in (UTF8, "utf-8-sig"):
        return _named(content, name, charset)
    codec = _unmarked_utf16(content)
    if codec is None:
        if charset != AUTO or _is_utf8(content):
            return Decoded(_utf8(content, name, charset), UTF8)
        codec = _recognised(content)
    if codec and charset == AUTO:
        return Decoded(_as(codec, content), codec)
    if codec:
        raise NotTextError(_begins(content, _spelled(codec)), hint=_cure(codec, name, charset))
    return Decoded(_utf8(content, name, charset), UTF8)  # says where it is none


# What bytes are


def _check_kind(content: bytes, name: str) -> None:
    found = next((kind for start, kind in KINDS.items() if content.startswith(start)), None)
    if content.startswith(ZIP):
        found = next((kind for part, kind in PACKED.items() if part in content), ("a zip archive", UNPACK))
    if content[TAR] == b"ustar":
        found = "a tar archive", UNPACK
    if found is not None:
        kind, cure = found
        words = {"name": shlex.quote(name), "unpacked": shlex.quote(_unpacked(name))}
        raise NotTextError(_begins(content, kind), hint=cure.format(**words))


def _unpacked(name: str) -> str:
    path = PurePath(name)
    is_named_so = path.suffix.lower() in PACKED_SUFFIXES
    return str(path.with_suffix("") if is_named_so else path.with_suffix(f".unpacked{path.suffix}"))


def _begins(content: bytes, kind: str) -> str:
    return f"begins with the bytes {content[:4].hex(' ')}: the file is {kind}"


def _marked(content: bytes) -> str | None:
    return next((codec for mark, codec in MARKS.items() if content.startswith(mark)), None)


def _unmarked_utf16(content: bytes) -> str | None:
    """UTF-16 without a mark, told from where its zero bytes stand. Raises `NotTextError` for other zeros."""
    start = content[:512]
    zeros = start.count(0)
    if zeros <= NULS_OF_UTF16 * len(start):
        return None
    odd = start[1::2].count(0)
    if max(odd, zeros - odd) < NULS_ON_ONE_SIDE * zeros:
        raise NotTextError(
            _begins(content, "no text: it holds zero bytes"), hint="is it the right file? Fetch it again"
        )
    return "utf-16-le" if odd > zeros - odd else "utf-16-be"


def _recognised(content: bytes) -> str | None:
    """The East Asian character set that the text is written in, if it is one beyond doubt."""
    shares = {codec: _common_share(content, codec) for codec in RECOGNISED}
    most = max(shares.values())
    best = [codec for codec, share in shares.items() if share == most]
    return best[0] if most >= COMMON_SHARE and len(best) == 1 else None


def _common_share(content: bytes, codec: str) -> float:
    """Of the characters beyond ASCII those that are frequent in this set; 0 where it is no text in it."""
    try:
        text = content.decode(codec)
    except UnicodeDecodeError:
        return 0.0
    if UNPRINTED.search(text):
        return 0.0
    plain, rows = RECOGNISED[codec]
    wide = [character for character in text[:SAMPLE] if not character.isascii()]
    return sum(_first_byte(character, plain) in rows for character in wide) / max(len(wide), 1)


def _first_byte(character: str, codec: str) -> int | None:
    try:
        return character.encode(codec)[0]
    except UnicodeEncodeError:
        return None


# Bytes in one character set


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode(UTF8)
    except UnicodeDecodeError:
        return False
    return True


def _utf8(content: bytes, name: str, charset: str | None) -> str:
    try:
        return content.decode(UTF8).lstrip(MARK)
    except UnicodeDecodeError as err:
        line, where = _place(content, err.start)
    codec = _recognised(content)
    if codec is not None:
        what = f"{where}; as {_spelled(codec)} it can be read"
        raise NotTextError(what, hint=_cure(codec, name, charset), line=line)
    hint = "save the file as UTF-8 text"
    if charset:
        hint += ", or name its character set, such as data.charset=gb18030 or cp1252"
    raise NotTextError(where, hint=hint, line=line)


def _named(content: bytes, name: str, charset: str) -> Decoded:
    """In the set that the settings name, unless the file is UTF-8: as another set that would be no text."""
    if not content.isascii() and 0 not in content[:512] and _is_utf8(content):
        raise NotTextError(
            f"is UTF-8, which data.charset={charset} would misread",
            hint=f"data.charset={AUTO} takes each file as it is",
        )
    return Decoded(_as(charset, content), find_codec(charset) or charset)


def _as(codec: str, content: bytes) -> str:
    try:
        return content.decode(codec).lstrip(MARK)
    except UnicodeDecodeError as err:
        line, where = _place(content, err.start, _spelled(codec))
    hint = f"fetch the file again, or name its character set: data.charset={AUTO} tries to tell it"
    raise NotTextError(where, hint=hint, line=line)


def _place(content: bytes, position: int, kind: str = "UTF-8") -> tuple[int, str]:
    """The line of a byte, and the words that name it."""
    line = content.count(b"\n", 0, position) + 1
    return line, f"byte {position + 1} of the file (0x{content[position]:02x}) is not {kind}"


def _spelled(codec: str) -> str:
    kind = {"gb18030": "GBK"}.get(codec, codec.upper())
    unmarked = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}.get(codec)
    if unmarked:
        return f"{unmarked} text without a byte-order mark"
    return f"{kind} text" if codec in MARKS.values() else kind


def _cure(codec: str, name: str, charset: str | None) -> str:
    return f"data.charset={codec} reads it as that" if charset else _converting(codec, name)


def _converting(codec: str, name: str) -> str:
    target = PurePath(name).with_suffix(f".utf8{PurePath(name).suffix}")
    source = codec.upper().replace("16-", "16")
    return f"convert it: iconv -f {source} -t UTF-8 {shlex.quote(name)} > {shlex.quote(str(target))}"
