"""Text -> JSON or YAML, where nothing is lost in silence: no key may be given twice.

Python's json and PyYAML let the last one win, so a bracket lost between two objects loses one of them. And
nothing is handed on that breaks what is done with a value: it is not nested without end, its integers can be
written out again, and it is no larger than its text.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import yaml

from glmtune.errors import ConfigError, first_line

TOKENS = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?|[{}\[\]]|-?\d[-+.\deE]*', re.DOTALL)
MOST_DEPTH = 100
"""Lists and objects inside each other: far below where Python's own recursion ends."""
MOST_YAML_DEPTH = 30
MOST_YAML = 2**18
"""Characters of a YAML text: PyYAML reads some 50,000 a second."""
MOST_EXPANDED = 2**20
"""Characters and nodes of a YAML text, aliases written out."""
MOST_NUMBER = 300
"""Characters of a number in YAML: as a decimal it is a float, in any base an integer that can be written."""
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Half characters but those that stand for a byte of a file's name. Source: peps.python.org/pep-0383."""
MOST_DIGITS = 4300
"""Of an integer: Python writes out, and reads, no longer ones. Source: docs.python.org, sys.int_info."""


# JSON


class UnfitJsonError(json.JSONDecodeError):
    """JSON that is not broken, and not taken; `pos` is where it shows, `hint` what to do."""

    hint = ""


class KeyTwiceError(UnfitJsonError):
    """A key that an object has twice."""

    hint = "keep the one that is right"


class TooDeepError(UnfitJsonError):
    """More than `MOST_DEPTH` lists and objects inside each other."""

    hint = "this needs flatter values; is it the right file?"


class LongIntegerError(UnfitJsonError):
    """An integer of more digits than Python reads."""

    hint = "write it as text, in quotes"


class _RepeatedError(Exception):
    pass


class _LongError(Exception):
    pass


class Decoder(json.JSONDecoder):
    """Python's decoder, but what a value must not have raises `UnfitJsonError`: see its kinds.

    `may_agree`: for files of others, a key may be given twice where the two values are the same.
    """

    def __init__(self, *, may_agree: bool = False) -> None:
        self.may_agree = may_agree
        super().__init__(object_pairs_hook=self._object, parse_int=_integer)

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """As Python's: the value that begins at `idx`, and where it ends."""
        try:
            value, end = super().raw_decode(s, idx)
        except _RepeatedError as err:
            key = err.args[0]
            position = next((at for name, at in _second_keys(s, idx) if name == key), idx)
            raise KeyTwiceError(f"the key {key!r} is given twice", s, position) from None
        except _LongError:
            raise LongIntegerError(
                f"an integer of more than {MOST_DIGITS:,} digits", s, _long(s, idx)
            ) from None
        except RecursionError:
            raise _too_deep(s, idx) from None
        if s.count("[", idx, end) + s.count("{", idx, end) > MOST_DEPTH and _is_deep(value):
            raise _too_deep(s, idx)
        return value, end

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


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise _LongError
    return int(digits)


def _is_deep(value: Any) -> bool:
    level: list[Any] = [[value]]
    for _ in range(MOST_DEPTH + 1):
        held = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in held if isinstance(inner, dict | list)]
    return bool(level)


def _too_deep(text: str, start: int) -> TooDeepError:
    """The error, at the first bracket that is too many."""
    depth, position = 0, start
    for token in TOKENS.finditer(text, start):
        depth += (token[0] in ("{", "[")) - (token[0] in ("}", "]"))
        if depth > MOST_DEPTH:
            position = token.start()
            break
    return TooDeepError(f"lists and objects nested more than {MOST_DEPTH} deep", text, position)


def _long(text: str, start: int) -> int:
    """Where the first integer of too many digits begins."""
    longest = (token for token in TOKENS.finditer(text, start) if len(token[0].lstrip("-")) > MOST_DIGITS)
    return next((token.start() for token in longest if token[0].lstrip("-").isdigit()), start)


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
    """The value of a JSON text. Raises `json.JSONDecodeError`, as `UnfitJsonError` for what is not broken."""
    return Decoder(may_agree=may_agree).decode(text)


# YAML


class UnfitYamlError(yaml.MarkedYAMLError):
    """YAML that is not broken, and not taken."""


class _Loader(yaml.SafeLoader):
    """Safe YAML, but a key is text and given once, and 1e-4 is a number, as in YAML 1.2; a date is text.

    Whatever cannot be read is a `MarkedYAMLError`; aliases are counted as what they stand for.
    """

    may_agree = False

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}
        """Characters and nodes of each node that is complete, aliases written out."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MOST_YAML_DEPTH:
            raise _unfit(f"lists and mappings nested more than {MOST_YAML_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        assert node is not None
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent) and node not in self._sizes:
            raise _unfit(f"the alias *{event.anchor} stands inside what it refers to", event)
        if node not in self._sizes:
            self._sizes[node] = self._size(node)
        if self._sizes[node] > MOST_EXPANDED:
            raise _unfit(f"with its aliases written out more than {MOST_EXPANDED:,} characters", event)
        return node

    def _size(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value)
        inner = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        return 1 + sum(self._sizes[part] for part in inner)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.tag == MERGE:
                continue
            if self.may_agree and key.tag in SIMPLE_TAGS:
                key.tag = TEXT
            if key.tag != TEXT:
                raise _unfit(f"a key must be text, got {_spelled(key)}", key)
            if key.value in seen and not (self.may_agree and self._is_same(seen[key.value], value)):
                raise _unfit(f"the key {key.value!r} is given twice", key)
            seen[key.value] = value
        return node

    def _is_same(self, one: yaml.Node, other: yaml.Node) -> bool:
        return bool(self.construct_object(one, deep=True) == self.construct_object(other, deep=True))

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_scalar = isinstance(node, yaml.ScalarNode)
        if is_scalar and node.tag in (INTEGER, FLOAT) and len(node.value) > MOST_NUMBER:
            raise _unfit(f"a number of more than {MOST_NUMBER} characters", node)
        if is_scalar and NO_BYTE.search(node.value):
            raise _unfit(f"half a character in {node.value!r}", node)
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError) as err:  # PyYAML's own are no ValueErrors
            raise _unfit(f"{_spelled(node)} cannot be read: {first_line(err)}", node) from None


def _unfit(problem: str, where: Any) -> UnfitYamlError:
    return UnfitYamlError(problem=problem, problem_mark=where.start_mark)


def _spelled(node: yaml.Node) -> str:
    tag = node.tag.replace(PREFIX, "!!")
    return f"{tag} {node.value[:60]}" if isinstance(node, yaml.ScalarNode) else tag


class _LenientLoader(_Loader):
    """For files of others: a key that is a number or the like is taken as its text."""

    may_agree = True


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would take for a number, or in which it would see line breaks."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape Unicode's own line breaks, which other quotes turn into spaces."""
        return self.represent_scalar(TEXT, data, style='"' if UNICODE_BREAKS.search(data) else None)


PREFIX = "tag:yaml.org,2002:"
TEXT, INTEGER, FLOAT, MERGE = (PREFIX + name for name in ("str", "int", "float", "merge"))
SIMPLE_TAGS = {INTEGER, FLOAT, PREFIX + "bool", PREFIX + "null"}
KNOWN_TAGS = {None, TEXT, *SIMPLE_TAGS, PREFIX + "seq", PREFIX + "map"}
"""What a value is made of; None is the constructor that refuses all others."""
PLAIN_TEXT = {f"{PREFIX}timestamp", f"{PREFIX}value"}
"""What YAML 1.1 sees in a date and in a lone `=`."""
DOUBLE_QUOTED = re.compile('"([^"]*)')
UNICODE_BREAKS = re.compile("[\x85\u2028\u2029]")
EXPONENT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$")
for kind in (_Loader, _LenientLoader, _Dumper):
    kind.add_implicit_resolver(FLOAT, EXPONENT, list("-+.0123456789"))
for kind in (_Loader, _LenientLoader):
    kind.yaml_constructors = {t: read for t, read in kind.yaml_constructors.items() if t in KNOWN_TAGS}
    kind.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if tag not in PLAIN_TEXT]
        for first, forms in kind.yaml_implicit_resolvers.items()
    }
_Dumper.add_representer(str, _Dumper.represent_str)
YAML_FAULTS = {
    "given twice": ("{}", "keep the one that is right"),
    "stands inside": ("{}", "write the value out"),
    "more than": ("{}", "this needs shorter and flatter values; is it the right file?"),
    "must be text": ("{}", "write it in quotes if it is meant"),
    "half a character": ("{}", "write the character itself"),
    "cannot be read": ("{}", "write the value without its tag"),
    "constructor for the tag": ("not valid YAML here: {}", "write the value without its tag"),
    "'\\t'": ("not valid YAML: a tab where YAML has spaces", "indent with spaces: replace the tab"),
    "escape": (
        "not valid YAML: in double quotes a backslash begins an escape: {}",
        "write it in single quotes, or a path with /: '{path}', {slashes}",
    ),
    "end of stream": (
        "not valid YAML: a quote that nothing closes",
        r"close it; in double quotes \" is a quote in the text: write a path in single quotes, or with /",
    ),
}
"""What to say, and to do, by a word of our own message or PyYAML's."""


def load_yaml(text: str, *, may_agree: bool = False) -> Any:
    """The value of a YAML text. Raises `yaml.YAMLError`; `may_agree` as of `Decoder`."""
    if len(text) > MOST_YAML:
        raise yaml.MarkedYAMLError(problem=f"more than {MOST_YAML:,} characters")
    loader = (_LenientLoader if may_agree else _Loader)(text)
    try:
        return loader.get_single_data()
    except (ValueError, OverflowError) as err:  # an escape or a version that is no character or number
        raise yaml.MarkedYAMLError(problem=first_line(err), problem_mark=loader.get_mark()) from None
    finally:
        loader.dispose()


def parse_yaml(text: str, where: str, *, may_agree: bool = False) -> Any:
    """As `load_yaml`, but raises `ConfigError` with line and column."""
    try:
        return load_yaml(text, may_agree=may_agree)
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark
        raise yaml_error(err, f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where, text) from None
    except yaml.YAMLError as err:
        what = f"{where}: not valid YAML: {first_line(err)}"
        raise ConfigError(what, hint="check the file's characters") from None


def yaml_error(err: yaml.MarkedYAMLError, where: str, text: str = "") -> ConfigError:
    """The error for YAML that cannot be read, and for what stands in double quotes where it stops."""
    problem = str(err.problem)
    what, hint = next(
        (found for word, found in YAML_FAULTS.items() if word in problem),
        ("not valid YAML: {}", "check indentation and quotes"),
    )
    if "{path}" in hint:
        line = text.split("\n")[err.problem_mark.line] if text and err.problem_mark else ""
        quoted = next((part for part in DOUBLE_QUOTED.findall(line) if "\\" in part), r"D:\data\train.json")
        problem = f"{quoted}: {problem}" if line else problem
        hint = hint.format(path=quoted, slashes=quoted.replace("\\", "/"))
    return ConfigError(f"{where}: {what.format(problem)}", hint=hint)


def dump_yaml(value: Any, **layout: Any) -> str:
    """YAML text that `load_yaml` reads back; `layout` is PyYAML's."""
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, **layout)
    return text
