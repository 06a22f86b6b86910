"""Strict JSON and YAML readers: a key given twice is an error, and so is a value that breaks later code.

Python's json and PyYAML keep the last of two equal keys, so a bracket lost between two objects silently
loses one object. Values are bounded too: in depth, in digits of an integer, in size with aliases expanded.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import yaml

from glmtune.errors import ConfigError, first_line

# a text with the colon after it if it is a key; a bracket; a number: enough to find a position in broken JSON
TOKENS = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?|[{}\[\]]|-?\d[-+.\deE]*', re.DOTALL)
MOST_DEPTH = 100
"""Lists and objects inside each other: far below Python's recursion limit."""
MOST_YAML_DEPTH = 30
"""Nesting allowed in YAML, whose reader recurses through several frames a level."""
MOST_YAML = 2**18
"""Characters of a YAML text: PyYAML reads about 50,000 a second."""
MOST_EXPANDED = 2**20
"""Characters and nodes of a YAML text with its aliases expanded."""
MOST_NUMBER = 300
"""Characters of a number in YAML: such a decimal fits a float, such an integer of any base `MOST_DIGITS`."""
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Lone surrogates, which no UTF-8 file can hold."""
NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Lone surrogates, except those that stand for a byte of a file name. Source: peps.python.org/pep-0383."""
MOST_DIGITS = 4300
"""Digits of an integer: int() and str() refuse more. Source: docs.python.org, sys.int_info."""


# JSON


class UnfitJsonError(json.JSONDecodeError):
    """Valid JSON that is refused; `pos` is the position of the fault, `hint` the cure."""

    hint = ""


class KeyTwiceError(UnfitJsonError):
    """An object has a key twice."""

    hint = "keep the one that is right"


class TooDeepError(UnfitJsonError):
    """Lists and objects are nested more than `MOST_DEPTH` deep."""

    hint = "this needs flatter values; is it the right file?"


class LongIntegerError(UnfitJsonError):
    """An integer has more than `MOST_DIGITS` digits."""

    hint = "write it as text, in quotes"


# The decoder's hooks see values without positions: they raise these, and raw_decode finds the position.
class _RepeatedError(Exception):
    pass


class _LongError(Exception):
    pass


class Decoder(json.JSONDecoder):
    """Python's JSON decoder, which also raises the subclasses of `UnfitJsonError`.

    `may_agree`, for files of other programs: a key may be given twice with the same value.
    """

    def __init__(self, *, may_agree: bool = False) -> None:
        self.may_agree = may_agree
        super().__init__(object_pairs_hook=self._object, parse_int=_integer)

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """Return the value that begins at `idx` and the position after it."""
        try:
            value, end = super().raw_decode(s, idx)
        except _RepeatedError as err:
            key = err.args[0]
            position = next((at for name, at in _second_keys(s, idx) if name == key), idx)
            raise KeyTwiceError(f"the key {key!r} is given twice", s, position) from None
        except _LongError:
            numbers = (token for token in TOKENS.finditer(s, idx) if token[0].lstrip("-").isdigit())
            longest = (token.start() for token in numbers if len(token[0].lstrip("-")) > MOST_DIGITS)
            problem = f"an integer of more than {MOST_DIGITS:,} digits"
            raise LongIntegerError(problem, s, next(longest, idx)) from None
        except RecursionError:
            raise _too_deep(s, idx) from None
        # counting brackets is cheap, so that only a text with many of them is walked level by level
        if s.count("[", idx, end) + s.count("{", idx, end) > MOST_DEPTH and _is_deep(value):
            raise _too_deep(s, idx)
        return value, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):  # some key is repeated: do the values agree?
            seen: dict[str, Any] = {}
            for key, value in pairs:
                if key in seen and not (self.may_agree and seen[key] == value):
                    raise _RepeatedError(key)
                seen[key] = value
        return content


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise _LongError
    return int(digits)


def _is_deep(value: object) -> bool:
    # level by level, not by recursion: the value may be deeper than the stack
    level: list[Any] = [[value]]
    for _ in range(MOST_DEPTH + 1):
        members = (
            inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)
        )
        level = [inner for inner in members if isinstance(inner, dict | list)]
    return bool(level)


def _too_deep(text: str, start: int) -> TooDeepError:
    """Make the error, at the first bracket that is nested too deep."""
    depth, position = 0, start
    for token in TOKENS.finditer(text, start):
        depth += (token[0] in ("{", "[")) - (token[0] in ("}", "]"))
        if depth > MOST_DEPTH:
            position = token.start()
            break
    return TooDeepError(f"lists and objects nested more than {MOST_DEPTH} deep", text, position)


def _second_keys(text: str, start: int) -> Iterator[tuple[str, int]]:
    """Yield every repeated key of an object with its position, in the order of the text."""
    open_: list[set[str]] = []  # the keys so far of each open object, lists included
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
    """Return the value of a JSON text. Raises `json.JSONDecodeError`; `UnfitJsonError` for valid JSON."""
    return Decoder(may_agree=may_agree).decode(text)


# YAML


class UnfitYamlError(yaml.MarkedYAMLError):
    """Valid YAML that is refused."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; but keys are unique texts, 1e-4 is a number as in YAML 1.2, a date is text.

    Raises `MarkedYAMLError` for whatever cannot be read. Sizes count an alias as the value it stands for.
    """

    may_agree = False

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}
        """Characters and nodes of each complete node, aliases expanded."""

    def compose_node(
        self,
        parent: Any,  # Any: PyYAML's own, passed on
        index: Any,  # Any: PyYAML's own, passed on
    ) -> yaml.Node:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MOST_YAML_DEPTH:
            raise _unfit(f"lists and mappings nested more than {MOST_YAML_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        assert node is not None
        self._depth -= 1
        # a node gets its size when it is complete, so an alias to a node without one is inside that node
        if isinstance(event, yaml.AliasEvent) and node not in self._sizes:
            raise _unfit(f"the alias *{event.anchor} stands inside what it refers to", event)
        if node not in self._sizes:
            if isinstance(node, yaml.ScalarNode):
                self._sizes[node] = 1 + len(node.value)
            else:
                is_mapping = isinstance(node, yaml.MappingNode)
                parts = chain.from_iterable(node.value) if is_mapping else node.value
                self._sizes[node] = 1 + sum(self._sizes[part] for part in parts)
        if self._sizes[node] > MOST_EXPANDED:
            raise _unfit(f"with its aliases written out more than {MOST_EXPANDED:,} characters", event)
        return node

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.tag == MERGE:  # `<<`: what it merges may be given again, that is its purpose
                continue
            if self.may_agree and key.tag in SIMPLE_TAGS:
                key.tag = TEXT
            if key.tag != TEXT:
                raise _unfit(f"a key must be text, got {_spelled(key)}", key)
            if key.value in seen and not (
                self.may_agree
                and self.construct_object(seen[key.value], deep=True)
                == self.construct_object(value, deep=True)
            ):
                raise _unfit(f"the key {key.value!r} is given twice", key)
            seen[key.value] = value
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_scalar = isinstance(node, yaml.ScalarNode)
        if is_scalar and node.tag in (INTEGER, FLOAT) and len(node.value) > MOST_NUMBER:
            raise _unfit(f"a number of more than {MOST_NUMBER} characters", node)
        if is_scalar and NO_BYTE.search(node.value):
            raise _unfit(f"half a character in {node.value!r}", node)
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError) as err:  # PyYAML's own errors are no ValueErrors: they pass
            raise _unfit(f"{_spelled(node)} cannot be read: {first_line(err)}", node) from None


def _unfit(problem: str, source: yaml.Node | yaml.Event) -> UnfitYamlError:
    mark: Any = source.start_mark  # the type stubs also allow the marks of the C loader, not used here
    return UnfitYamlError(problem=problem, problem_mark=mark)


def _spelled(node: yaml.Node) -> str:
    tag = node.tag.replace(PREFIX, "!!")
    return f"{tag} {node.value[:60]}" if isinstance(node, yaml.ScalarNode) else tag


class _LenientLoader(_Loader):
    """The loader for files of other programs: a key that is a number, a boolean or null becomes its text."""

    may_agree = True


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes texts which `_Loader` would read as a number or break into lines."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Double-quote a text with Unicode line breaks, which other quotes would turn into spaces."""
        return self.represent_scalar(TEXT, data, style='"' if UNICODE_BREAKS.search(data) else None)


PREFIX = "tag:yaml.org,2002:"
TEXT, INTEGER, FLOAT, MERGE = (PREFIX + name for name in ("str", "int", "float", "merge"))
SIMPLE_TAGS = {INTEGER, FLOAT, PREFIX + "bool", PREFIX + "null"}
KNOWN_TAGS = {None, TEXT, *SIMPLE_TAGS, PREFIX + "seq", PREFIX + "map"}
"""Tags that a value may have; None is the constructor that refuses all others."""
PLAIN_TEXT = {f"{PREFIX}timestamp", f"{PREFIX}value"}
"""Tags that YAML 1.1 gives a date and a lone `=`: read as text."""
DOUBLE_QUOTED = re.compile('"([^"]*)')
UNICODE_BREAKS = re.compile("[\x85\u2028\u2029]")
# YAML 1.1, and so PyYAML, takes 1e-4 for a text: it wants 1.0e-4
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
"""Message and hint by a word in the error's text, glmtune's own or PyYAML's; the first word found counts."""


def load_yaml(text: str, *, may_agree: bool = False) -> Any:
    """Return the value of a YAML text. Raises `yaml.YAMLError`; `may_agree` as of `Decoder`."""
    if len(text) > MOST_YAML:
        raise yaml.MarkedYAMLError(problem=f"more than {MOST_YAML:,} characters")
    loader = (_LenientLoader if may_agree else _Loader)(text)
    try:
        return loader.get_single_data()
    except (ValueError, OverflowError) as err:  # a bad escape or %YAML version
        raise yaml.MarkedYAMLError(problem=first_line(err), problem_mark=loader.get_mark()) from None
    finally:
        loader.dispose()


def parse_yaml(text: str, where: str, *, may_agree: bool = False) -> Any:
    """Return the value of a YAML text. Raises `ConfigError` with line and column."""
    try:
        return load_yaml(text, may_agree=may_agree)
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark
        raise yaml_error(err, f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where, text) from None
    except yaml.YAMLError as err:
        what = f"{where}: not valid YAML: {first_line(err)}"
        raise ConfigError(what, hint="check the file's characters") from None


def yaml_error(err: yaml.MarkedYAMLError, where: str, text: str = "") -> ConfigError:
    """Make the ConfigError for a YAML error; `text` lets it quote a Windows path in double quotes."""
    problem = str(err.problem)
    what, hint = next(
        (advice for word, advice in YAML_FAULTS.items() if word in problem),
        ("not valid YAML: {}", "check indentation and quotes"),
    )
    if "{path}" in hint:
        line = text.split("\n")[err.problem_mark.line] if text and err.problem_mark else ""
        quoted = next((part for part in DOUBLE_QUOTED.findall(line) if "\\" in part), r"D:\data\train.json")
        problem = f"{quoted}: {problem}" if line else problem
        hint = hint.format(path=quoted, slashes=quoted.replace("\\", "/"))
    return ConfigError(f"{where}: {what.format(problem)}", hint=hint)


def dump_yaml(value: object, **layout: Any) -> str:  # Any: PyYAML's options, each of its own type
    """Return YAML text that `load_yaml` reads back; `layout` are options of `yaml.dump`."""
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, **layout)
    return text
