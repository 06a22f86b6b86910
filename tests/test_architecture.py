"""Who may import whom, how long things may be, and where names decide: checked from the source text."""

import ast
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from commands import glmtune
from glmtune import errors
from glmtune.families import FAMILIES
from glmtune.quants import QUANTS
from glmtune.recipe import method, objective
from glmtune.templates import TEMPLATES

SRC = Path(__file__).parents[1] / "src" / "glmtune"
LAYERS = [  # a module imports its own package and the lines above it, nothing else
    {"errors"},
    {"charset", "language", "log", "near", "quants", "renamed", "rules", "strict", "unsupported"},
    {"extras", "paths", "values"},
    {"contents", "general"},
    {"files"},
    {"explanations", "templates"},
    {"folder", "hub", "processor", "recipe", "run_files", "signs"},
    {"run_process", "template_rules"},
    {"families", "tensor_file"},
    {"possible"},
    {"tokenizers"},
    {"models"},
    {"conversation"},
    {"data", "generate", "methods"},
    {"objectives"},
    {"adapters"},
    {"locations"},
    {"load"},
    {"info", "several"},
    {"chat"},
    {"training"},
    {"evaluation"},
    {"exports", "migration", "reports"},
    {"workflows"},
    {"serve", "web"},
    {"cli"},
]
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in SRC.rglob("*.py") if path.parent != SRC or not path.name.startswith("__"))
ONLY_IN = {
    "peft": ("adapters", "methods"),
    "accelerate": ("training/processes",),
    "matplotlib": ("reports",),
    "gradio": ("web",),
    "click": ("cli",),
    "prompt_toolkit": ("cli",),
    "sentencepiece": ("tokenizers",),
    "tiktoken": ("tokenizers",),
    "modelscope": ("hub",),
    "bitsandbytes": ("models", "training"),
    "fsspec": ("workflows/copies",),
    "wandb": ("workflows/trackers",),
    "trackio": ("workflows/trackers",),
    "fastapi": ("serve",),
    "starlette": ("serve", "web"),
    "uvicorn": ("serve",),
    "prometheus_client": ("serve",),
}


def part(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names += (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return tuple(names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down(path: Path) -> None:
    here = part(path)
    for name in imports(path):
        if name.startswith("glmtune."):
            there = name.split(".")[1]
            assert there == here or RANK[there] < RANK[here], f"{here} may not import {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_foreign_packages_stay_where_they_belong(path: Path) -> None:
    for name in imports(path):
        homes = ONLY_IN.get(name.split(".")[0])
        here = (part(path), path.relative_to(SRC).with_suffix("").as_posix())
        assert homes is None or set(homes) & set(here), f"{name} belongs in {homes}"


MAY_NOT = {
    "models": {"conversation"},
    "generate": {"load", "several", "locations", "hub", "adapters"},  # the engine knows no files
}


@pytest.mark.parametrize("here", MAY_NOT)
def test_models_know_no_text_and_the_engine_knows_no_files(here: str) -> None:
    for path in (SRC / here).rglob("*.py"):
        names = imports(path)
        found = {name.split(".")[1] for name in names if name.startswith("glmtune.")}
        assert not found & MAY_NOT[here], path.name


DEEPEST = 22
"""Modules in the longest chain of imports."""
MODULES = {
    ".".join(("glmtune", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SRC.rglob("*.py")
}


def while_loading(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that loading a module does: not those in functions and under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif isinstance(node, ast.If | ast.Try | ast.ClassDef | ast.ExceptHandler):
            yield from while_loading(node)


@cache
def loads(module: str) -> frozenset[str]:
    """What of ours a module imports: `from a.b import c` is a.b.c if that is a module, else a.b."""
    found: set[str] = set()
    for node in while_loading(parse(MODULES[module])):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif node.module:
            whole = {name.name: f"{node.module}.{name.name}" for name in node.names}
            found |= {there if there in MODULES else node.module for there in whole.values()}
    return frozenset(found & MODULES.keys() - {module, "glmtune"})


@cache
def deepest(module: str) -> tuple[str, ...]:
    """The longest chain of imports that begins with a module."""
    chains = (deepest(there) for there in sorted(loads(module)))
    return (module, *max(chains, key=len, default=()))


def test_no_module_loads_itself_on_the_way() -> None:
    left = {module: set(loads(module)) for module in MODULES}
    while ends := [module for module, names in left.items() if not names]:
        for module in ends:
            del left[module]
        for names in left.values():
            names.difference_update(ends)
    assert not left, f"in or above a cycle: {sorted(left)}"


def test_the_longest_chain_of_imports_is_short() -> None:
    chain = max((deepest(name) for name in MODULES if name.startswith("glmtune.workflows")), key=len)
    assert len(chain) <= DEEPEST, " > ".join(chain)


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MOST_LINES_OF_A_FUNCTION, node.name


MODEL_TYPES = {row.model_type for row in FAMILIES.values()}
NAMES = {
    *FAMILIES,
    *MODEL_TYPES,
    *TEMPLATES,
    *QUANTS,
    *method.METHOD_SETTINGS,
    *objective.OBJECTIVE_SETTINGS,
}
KINDS = {kind.__name__ for kind in (*method.METHOD_SETTINGS.values(), *objective.OBJECTIVE_SETTINGS.values())}
FOREIGN = {
    "migration/configs.py",  # foreign scripts are frozen as they are: what they call a method
    "migration/scripts.py",
}
RULES = {"signs.py", "template_rules.py"}
"""What rows of tables look for in a folder's files."""


def compared(node: ast.AST) -> Iterator[str]:
    """The texts and the types that a piece of code compares with."""
    if isinstance(node, ast.Compare):
        for side in (node.left, *node.comparators):
            members = side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
            yield from (one.value for one in members if isinstance(one, ast.Constant) and str(one.value))
            yield from (ast.unparse(one) for one in members if isinstance(one, ast.Name))
    elif isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant):
        yield node.value.value
    elif isinstance(node, ast.MatchClass):
        yield ast.unparse(node.cls)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"isinstance", "issubclass"}:
        yield from (
            ast.unparse(one) for one in ast.walk(node.args[1]) if isinstance(one, ast.Name | ast.Attribute)
        )


def test_comparing_is_seen_in_every_form() -> None:
    code = """
name == "lora"; "GLM-4" != family; kind in ("full", other); isinstance(settings, Lora | Full)
isinstance(settings, (method.Freeze,)); type(settings) is AdaLora
match name:
    case "ptuning" | "adalora": pass
    case Ptuning(): pass
"""
    found = {text for node in ast.walk(ast.parse(code)) for text in compared(node)}
    assert found >= {"lora", "GLM-4", "full", "Lora", "Full", "AdaLora", "ptuning", "adalora", "Ptuning"}
    assert {text.split(".")[-1] for text in found} >= {"Freeze"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_names_of_families_and_methods_decide_in_tables_only(path: Path) -> None:
    if path.relative_to(SRC).as_posix() in FOREIGN | RULES:
        return
    tree = parse(path)
    asserted = {part for node in ast.walk(tree) if isinstance(node, ast.Assert) for part in ast.walk(node)}
    for node in set(ast.walk(tree)) - asserted:  # which decide nothing
        for text in compared(node):
            assert str(text).split(".")[-1] not in NAMES | KINDS, f"line {node.lineno}: {ast.unparse(node)}"


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
        assert not UNIX_ONLY & set(imports(path))
    assert not UNIX_CALLS.search(text)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_only_the_command_line_exits_and_only_it_and_what_shows_events_print(path: Path) -> None:
    may_print = {"print"} if path == SRC / "workflows" / "show.py" else set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and part(path) != "cli":
            called = ast.unparse(node.func)
            assert called not in {"print", "exit", "quit", "sys.exit"} - may_print, (
                f"line {node.lineno}: {called}"
            )


ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_every_error_of_ours_has_a_hint(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ERRORS:
            hints = [ast.unparse(word.value) for word in node.keywords if word.arg == "hint"]
            assert hints not in ([], ["''"]), f"line {node.lineno}: no hint"


TORCH_FREE = [
    "glmtune",
    "glmtune.cli",
    "glmtune.recipe",
    "glmtune.recipe.describe",
    "glmtune.templates",
    "glmtune.explanations",
    "glmtune.families",
    "glmtune.possible",
    "glmtune.folder",
    "glmtune.hub",
    "glmtune.run_files",
    "glmtune.run_process",
    "glmtune.migration",
    "glmtune.data.formats",
    "glmtune.data.reader",
    "glmtune.data.split",
    "glmtune.data.convert",
    "glmtune.data.stats",
    "glmtune.evaluation.metrics",
    "glmtune.reports.plots",
    "glmtune.reports.compare",
    "glmtune.reports.card",
    "glmtune.reports.html.page",
    "glmtune.locations",
    "glmtune.methods",
    "glmtune.adapters.peft_rules",
    "glmtune.training.stopping",
    "glmtune.workflows",
    "glmtune.workflows.copies",
    "glmtune.workflows.early",
    "glmtune.workflows.resuming",
    "glmtune.workflows.rows",
    "glmtune.workflows.runner",
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


MOST_FILES_TO_BACKWARD = 12


def test_few_files_lie_between_the_command_and_backward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[str] = []
    backward = torch.Tensor.backward

    def seen(self: torch.Tensor, *args: object, **kwargs: object) -> None:
        if not files:
            stack = [Path(frame.filename) for frame in traceback.extract_stack()]
            files.extend(dict.fromkeys(str(path.relative_to(SRC)) for path in stack if SRC in path.parents))
        backward(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", seen)
    words = (
        "data.max_rows=3",
        "data.holdout_rows=1",
        "train.batch_size=2",
        "train.steps=1",
        "samples.prompts=[]",
    )
    done = glmtune(
        "train", "model=glm-tiny", "data.train=examples/adverts.jsonl", *words, "output=run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert files[0] == "cli/__init__.py"
    assert len(files) <= MOST_FILES_TO_BACKWARD, " > ".join(files)
