"""Bytes -> text -> JSON or YAML, where nothing is lost in silence: no key may be given twice.

Python's json and PyYAML let the last one win, so a bracket lost between two objects loses one of them.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import yaml

from glmtune.errors import ConfigError

UTF8_MARK = b"\xef\xbb\xbf"
LFS_POINTER = b"version https://git-lfs"
"""How the text begins that git leaves for a large file. Source: github.com/git-lfs/git-lfs, docs/spec.md."""
KINDS = {
    b"\xff\xfe\x00\x00": "UTF-32 text",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"PK\x03\x04": "a zip archive, as Excel's .xlsx files are",
    b"PK\x05\x06": "an empty zip archive",
    b"\xd0\xcf\x11\xe0": "an old Office file, such as .xls",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    LFS_POINTER: "a git-lfs pointer, not the file itself",
}
"""What files are that begin so. Source: https://en.wikipedia.org/wiki/List_of_file_signatures."""
CURES = {
    "zip": "save the sheet as CSV (UTF-8), or unpack the archive",
    "Office": "save the sheet as CSV (UTF-8)",
    "archive": "unpack it first",
    "parquet": "give it a name that ends with .parquet",
    "git-lfs": "run `git lfs pull` in its folder",
}
"""What to do about a kind of file, by a word of its name."""
TOKENS = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?|[{}\[\]]', re.DOTALL)
NULS_OF_UTF16 = 0.05
"""JSON or CSV in UTF-16 has more zero bytes than this share; in UTF-8 it has none."""


class NotTextError(ValueError):
    """Bytes that are no UTF-8 text: what they are, on which line it shows, and what to do."""

    def __init__(self, what: str, *, hint: str, line: int = 1) -> None:
        super().__init__(what)
        self.hint, self.line = hint, line


def decode(content: bytes, name: str) -> str:
    """UTF-8 text without its byte-order mark. Raises `NotTextError`; `name` is the file's, for the hint."""
    found = next((kind for start, kind in KINDS.items() if content.startswith(start)), None)
    if found is not None and not found.startswith("UTF"):
        cure = next((cure for word, cure in CURES.items() if word in found), "this needs JSON, CSV or YAML")
        raise NotTextError(_begins(content, found), hint=cure)
    if found is not None or content[:512].count(0) > NULS_OF_UTF16 * len(content[:512]):
        raise _wide(content, name, found)
    try:
        return content.removeprefix(UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as err:
        raise _not_utf8(content, name, err.start + len(content) - len(err.object)) from None


def _begins(content: bytes, kind: str) -> str:
    return f"begins with the bytes {content[:4].hex(' ')}: the file is {kind}"


def _wide(content: bytes, name: str, kind: str | None) -> NotTextError:
    """Two or four bytes a character, with a mark or told from where the zeros stand."""
    codec = (kind or "UTF-16").split()[0]
    if kind is None:
        codec += "LE" if content[1:512:2].count(0) > content[0:512:2].count(0) else "BE"
        kind = f"{codec} text without a byte-order mark"
    return NotTextError(_begins(content, kind), hint=_converting(codec, name))


def _not_utf8(content: bytes, name: str, position: int) -> NotTextError:
    line = content.count(b"\n", 0, position) + 1
    where = f"byte {position + 1} of the file (0x{content[position]:02x}) is not UTF-8"
    try:
        content.decode("gb18030")
    except UnicodeDecodeError:
        return NotTextError(where, hint="save the file as UTF-8 text", line=line)
    return NotTextError(f"{where}; as GBK it can be read", hint=_converting("GB18030", name), line=line)


def _converting(codec: str, name: str) -> str:
    target = PurePath(name).with_suffix(f".utf8{PurePath(name).suffix}")
    return f"convert it: iconv -f {codec} -t UTF-8 {shlex.quote(name)} > {shlex.quote(str(target))}"


# JSON


class KeyTwiceError(json.JSONDecodeError):
    """A key that an object has twice; `pos` is where it stands again."""


class _RepeatedError(Exception):
    pass


class Decoder(json.JSONDecoder):
    """Python's decoder, but a key given twice raises `KeyTwiceError`.

    `may_agree`: for files of others, only where the two values differ.
    """

    def __init__(self, *, may_agree: bool = False) -> None:
        self.may_agree = may_agree
        super().__init__(object_pairs_hook=self._object)

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """As Python's: the value that begins at `idx`, and where it ends."""
        try:
            return super().raw_decode(s, idx)
        except _RepeatedError as err:
            key = err.args[0]
            position = next((at for name, at in _second_keys(s, idx) if name == key), idx)
            raise KeyTwiceError(f"the key {key!r} is given twice", s, position) from None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._check_repeated(pairs)
        return found

    def _check_repeated(self, pairs: list[tuple[str, Any]]) -> None:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen and not (self.may_agree and seen[key] == value):
                raise _RepeatedError(key)
            seen[key] = value


def _second_keys(text: str, start: int) -> Iterator[tuple[str, int]]:
    """Every key that its object has had before, with its position, in the order of the text."""
    open_: list[set[str]] = []
    for token in TOKENS.finditer(text, start):
        if token[0] in ("{", "["):
            open_.append(set())
        elif not open_:
            return
        elif token[0] in ("}", "]"):
            open_.pop()
        elif token[2]:
            key = json.loads(f'"{token[1]}"', strict=False)
            if key in open_[-1]:
                yield key, token.start()
            open_[-1].add(key)


def parse_json(text: str, *, may_agree: bool = False) -> Any:
    """The value of a JSON text. Raises `json.JSONDecodeError`, as `KeyTwiceError` for a key given twice."""
    return Decoder(may_agree=may_agree).decode(text)


# YAML


class RepeatedKeyError(yaml.composer.ComposerError):
    """A key that a YAML mapping has twice."""


class _Loader(yaml.SafeLoader):
    """Safe YAML, but a key given twice is an error, and 1e-4 is a number, as in YAML 1.2."""

    may_agree = False

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], yaml.Node] = {}
        for key, value in node.value:
            name = (key.tag, str(key.value))
            if name in seen and not (self.may_agree and _plain(seen[name]) == _plain(value)):
                raise RepeatedKeyError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            if key.tag != MERGE:
                seen[name] = value
        return node


class _LenientLoader(_Loader):
    may_agree = True


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would take for a number."""


MERGE = "tag:yaml.org,2002:merge"
FLOAT = "tag:yaml.org,2002:float"
EXPONENT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$")
for kind in (_Loader, _LenientLoader, _Dumper):
    kind.add_implicit_resolver(FLOAT, EXPONENT, list("-+.0123456789"))
YAML_FAULTS = {
    "given twice": ("{}", "keep the one that is right"),
    "'\\t'": ("not valid YAML: a tab where YAML has spaces", "indent with spaces: replace the tab"),
    "escape": (
        "not valid YAML: in double quotes a backslash begins an escape: {}",
        r"write the path in single quotes, or with /: 'D:\data\train.json', D:/data/train.json",
    ),
}
"""What to say, and to do, by a word of PyYAML's own message."""


def _plain(node: yaml.Node) -> Any:
    return yaml.load(yaml.serialize(node), _Loader)


def load_yaml(text: str, *, may_agree: bool = False) -> Any:
    """The value of a YAML text. Raises `yaml.YAMLError`; `may_agree` as of `Decoder`."""
    return yaml.load(text, _LenientLoader if may_agree else _Loader)


def parse_yaml(text: str, place: str, *, may_agree: bool = False) -> Any:
    """As `load_yaml`, but raises `ConfigError` with line and column."""
    try:
        return load_yaml(text, may_agree=may_agree)
    except yaml.MarkedYAMLError as err:
        mark, problem = err.problem_mark, str(err.problem)
        where = f"{place}:{mark.line + 1}:{mark.column + 1}" if mark else place
        what, hint = next(
            (found for word, found in YAML_FAULTS.items() if word in problem),
            ("not valid YAML: {}", "check indentation and quotes"),
        )
        raise ConfigError(f"{where}: {what.format(problem)}", hint=hint) from None
    except yaml.YAMLError as err:
        raise ConfigError(f"{place}: not valid YAML: {err}", hint="check the file's characters") from None


def dump_yaml(value: Any, **layout: Any) -> str:
    """YAML text that `load_yaml` reads back; `layout` is PyYAML's."""
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, **layout)
    return text
