"""Who may import whom, checked from the source text."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmtune import errors

SRC = Path(__file__).parents[1] / "src" / "glmtune"
LAYERS = [  # a module imports its own package and the lines above it, nothing else
    {"errors"},
    {"charset", "extras", "log", "near", "quants", "rules", "strict", "unsupported"},
    {"paths", "values"},
    {"contents"},
    {"files"},
    {"folder", "hub", "processor", "recipe", "runs", "signs"},
    {"template_rules"},
    {"families", "templates", "tensor_file"},
    {"possible"},
    {"tokenizers"},
    {"models"},
    {"conversation"},
    {"data", "methods"},
    {"objectives"},
    {"adapters"},
    {"places"},
    {"load"},
    {"info", "several"},
    {"generate"},
    {"chat"},
    {"training"},
    {"evaluation"},
    {"exports", "migration", "report"},
    {"workflows"},
    {"serve"},
    {"cli"},
]
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in SRC.rglob("*.py") if path.parent != SRC or not path.name.startswith("__"))
ONLY_IN = {
    "peft": ("adapters", "methods"),
    "accelerate": ("training",),
    "matplotlib": ("report",),
    "click": ("cli",),
    "prompt_toolkit": ("cli",),
    "sentencepiece": ("tokenizers",),
    "tiktoken": ("tokenizers",),
    "modelscope": ("hub",),
    "bitsandbytes": ("models", "training"),
}


def part(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down(path: Path) -> None:
    here = part(path)
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if name.startswith("glmtune."):
            there = name.split(".")[1]
            assert there == here or RANK[there] < RANK[here], f"{here} may not import {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_foreign_packages_stay_where_they_belong(path: Path) -> None:
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        homes = ONLY_IN.get(name.split(".")[0])
        assert homes is None or part(path) in homes, f"{name} belongs in {homes}"


UNIX_ONLY = {"resource", "fcntl", "termios", "tty", "pty", "pwd", "grp"}
UNIX_CALLS = re.compile(
    r"os\.(fork|symlink|mkfifo|killpg|geteuid|getuid|sched_getaffinity|setsid)|signal\.(SIGKILL|SIGHUP|SIGALRM|alarm)"
)
GUARDED = {"training/memory.py", "tokenizers/apart.py"}
"""These ask for the system first."""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_nothing_is_for_unix_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.relative_to(SRC).as_posix() not in GUARDED:
        assert not UNIX_ONLY & set(imports(ast.parse(text)))
    assert not UNIX_CALLS.search(text)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_only_the_command_line_exits_and_only_it_and_what_shows_events_print(path: Path) -> None:
    may_print = {"print"} if path == SRC / "workflows" / "show.py" else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and part(path) != "cli":
            called = ast.unparse(node.func)
            assert called not in {"print", "exit", "quit", "sys.exit"} - may_print, (
                f"line {node.lineno}: {called}"
            )


ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_every_error_of_ours_has_a_hint(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ERRORS:
            hints = [ast.unparse(word.value) for word in node.keywords if word.arg == "hint"]
            assert hints not in ([], ["''"]), f"line {node.lineno}: no hint"


TORCH_FREE = [
    "glmtune",
    "glmtune.cli",
    "glmtune.recipe",
    "glmtune.recipe.describe",
    "glmtune.templates",
    "glmtune.families",
    "glmtune.possible",
    "glmtune.folder",
    "glmtune.hub",
    "glmtune.runs",
    "glmtune.migration",
    "glmtune.data.formats",
    "glmtune.data.source",
    "glmtune.data.split",
    "glmtune.data.convert",
    "glmtune.data.stats",
    "glmtune.evaluation.metrics",
    "glmtune.report.plots",
    "glmtune.report.compare",
    "glmtune.places",
    "glmtune.adapters.peft_rules",
    "glmtune.training.stopping",
    "glmtune.workflows",
    "glmtune.workflows.rows",
]


def test_these_modules_load_without_torch() -> None:
    code = f"""
import sys
for name in {TORCH_FREE}:
    __import__(name)
    assert "torch" not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_without_an_adapter_answers_without_peft() -> None:
    code = """
import sys
from glmtune.chat import Chat
from glmtune.load import load_model, load_tokenizer
chat = Chat(load_model("glm-tiny"), load_tokenizer("glm-tiny"), max_new_tokens=4)
assert list(chat.ask("hi"))
assert "peft" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
