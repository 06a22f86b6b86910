"""How readable the code is, in figures: `python tools/plain_words.py [FOLDER]`, by default `src/glmtune`.

`tests/test_plain_words.py` holds the code to the limits.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
VAGUE = ("What", "Whether", "Which", "Where", "How", "That", "Those", "So", "It")
"""First words that tell a reader who searches nothing."""
_FOR_TOOLS = re.compile(r"#\s*(noqa|type:|ruff|fmt:|pragma)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Helper:
    """A private function, and how often its own file or another names it."""

    where: str
    name: str
    num_uses: int
    is_called: bool
    """False if it is only handed on, as a callback or in a table."""
    num_lines: int
    """Of its body, docstring aside."""


@dataclass(frozen=True, slots=True)
class Untyped:
    """A parameter annotated with a bare `Any`."""

    where: str
    name: str
    has_reason: bool
    """True if a comment `# Any: ...` stands on its line."""


class Code:
    """The Python files below a folder, parsed once."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.rglob("*.py"))
        self.texts = {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in paths}
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Every function and method, with its file."""
        for name, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    yield name, node

    def num_code_lines(self) -> int:
        """Lines that hold code: no blank ones, no docstrings, no comments of their own."""
        return sum(len(_code_lines(text, self.trees[name])) for name, text in self.texts.items())

    def comments(self) -> Iterator[str]:
        """Every comment that is meant for a reader, not for a tool."""
        for text in self.texts.values():
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type == tokenize.COMMENT and not _FOR_TOOLS.match(token.string):
                    yield token.string

    def helpers(self) -> Iterator[Helper]:
        """Private functions and methods without decorators."""
        imported = Counter(
            alias.name
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        )
        for file, tree in self.trees.items():
            named, called = _names_in(tree), _names_in(tree, called=True)
            for node in ast.walk(tree):
                if not isinstance(node, Function) or not re.match("_(?!_)", node.name) or node.decorator_list:
                    continue
                body = node.body[1:] if ast.get_docstring(node) else node.body
                num_lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                uses = named[node.name] - _names_in(node)[node.name] + imported[node.name]
                yield Helper(f"{file}:{node.lineno}", node.name, uses, called[node.name] > 0, num_lines)

    def parameters(self) -> Iterator[tuple[str, Function, ast.arg]]:
        """Every parameter but `self` and `cls`."""
        for file, node in self.functions():
            listed = node.args
            every = [*listed.posonlyargs, *listed.args, listed.vararg, *listed.kwonlyargs, listed.kwarg]
            for parameter in every:
                if parameter and parameter.arg not in ("self", "cls"):
                    yield file, node, parameter

    def untyped(self) -> Iterator[Untyped]:
        """Parameters annotated with a bare `Any`."""
        for file, node, parameter in self.parameters():
            if isinstance(parameter.annotation, ast.Name) and parameter.annotation.id == "Any":
                line = self.texts[file].splitlines()[parameter.lineno - 1]
                where = f"{file}:{parameter.lineno}"
                yield Untyped(where, f"{node.name}({parameter.arg})", bool(re.search(r"# Any: .", line)))

    def docstrings(self) -> Iterator[tuple[str, str]]:
        """Every docstring, also those below attributes, with its place."""
        for file, tree in self.trees.items():
            for node in ast.walk(tree):
                if text := _docstring(node):
                    yield f"{file}:{node.lineno}", text

    def classes(self) -> dict[str, list[str]]:
        """The places of each class name."""
        found = defaultdict(list)
        for file, tree in self.trees.items():
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(f"{file}:{node.lineno}")
        return found


def _docstring(node: ast.AST) -> str:
    """Return the text of a string that stands alone as a statement, else nothing."""
    value = node.value if isinstance(node, ast.Expr) else None
    return value.value.strip() if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def _names_in(tree: ast.AST, *, called: bool = False) -> Counter[str]:
    nodes = list(ast.walk(tree))
    if called:
        nodes = [node.func for node in nodes if isinstance(node, ast.Call)]
    return Counter(node.id for node in nodes if isinstance(node, ast.Name)) + Counter(
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    )


def _code_lines(text: str, tree: ast.Module) -> set[int]:
    quiet = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in quiet:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and _docstring(node):
            lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines


def main() -> None:
    """Print the figures; with `--list` also every private helper with one caller."""
    folders = [word for word in sys.argv[1:] if word != "--list"]
    code = Code(Path(folders[0]) if folders else ROOT / "src" / "glmtune")
    num_lines, num_parameters = code.num_code_lines(), sum(1 for _ in code.parameters())
    once, untyped = [helper for helper in code.helpers() if helper.num_uses == 1], list(code.untyped())
    vague = [text for _, text in code.docstrings() if text.startswith(tuple(f"{word} " for word in VAGUE))]
    print(f"lines of code: {num_lines:,}")
    print(f"private helpers with one caller: {len(once)}")
    print(f"those of three lines or fewer: {sum(helper.num_lines <= 3 for helper in once)}")
    print(f"bare Any: {len(untyped)} of {num_parameters:,} parameters, {len(untyped) / num_parameters:.1%}")
    print(f"comments per 100 lines: {100 * sum(1 for _ in code.comments()) / num_lines:.1f}")
    print(f"docstrings that begin with {', '.join(VAGUE)}: {len(vague)}")
    print(f"class names that files share: {sum(len(places) > 1 for places in code.classes().values())}")
    if "--list" in sys.argv:
        for helper in once:
            print(f"{helper.where} {helper.name}: {helper.num_lines} lines")


if __name__ == "__main__":
    main()
