"""Every hint that names a command, a setting, a page or a Python name leads somewhere.

Here the texts as the source has them; `conftest.py` follows each hint that any test meets, with its values.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmtune.cli import glmtune as program
from glmtune.cli.hints import OTHER_VERBS, name_options
from glmtune.recipe.names import FOREIGN, NEEDLESS, VALUES
from hints import follow, follow_names, unspoken

SRC = Path(__file__).parents[1] / "src" / "glmtune"
FILES = sorted(SRC.rglob("*.py"))


def texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    """The texts below a node, `...` for what is put in; docstrings are left out."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.JoinedStr):
        parts = (str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        yield node.lineno, "".join(parts)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def hints(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The texts of hints: given as `hint=`, put into such a name or one in capitals, given back by a function
    that makes one.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            yield from texts(node.value)
        if isinstance(node, ast.Assign) and "hint" in ast.unparse(node.targets[0]).lower():
            yield from texts(node.value)
        if isinstance(node, ast.FunctionDef) and "hint" in node.name:
            given_back = (part for part in ast.walk(node) if isinstance(part, ast.Return) and part.value)
            for part in given_back:
                yield from texts(part)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_what_a_text_names_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for line, text in texts(tree):
        assert not list(follow_names(text)), f"line {line}: {text}"
    for line, text in hints(tree):
        assert not follow(text), f"line {line}: {text}"


def test_the_tables_of_other_names_lead_somewhere() -> None:
    for text in (*OTHER_VERBS.values(), *FOREIGN.values(), *NEEDLESS.values()):
        assert not follow(re.sub(r"\w*\{\}", "...", text)), text
    for values in VALUES.values():
        for words in values.values():
            assert not follow(words), words
    assert not OTHER_VERBS.keys() & program.commands.keys()


WRONG = {
    "say it: tempalte=chatglm2": "tempalte= is neither",
    "train.lrr=1": "train.lrr is no setting",
    "train.steps=many": "train.steps=many: train.steps: input should be",
    "use encoding=chat": "encoding= is neither",
    "raise train.leng": "train.leng is no setting",
    "glmtune chat RUN": "without backticks",
    "name another: --output": "--output stands in no command",
    "`glmtune tain RUN`": "no verb tain",
    "`glmtune chat RUN --tmplate x`": "No such option",
    "`glmtune export RUN --output NEW`": "Missing option '--to'",
    "`glmtune train model=M train.lr=-1`": "train.lr=-1: train.lr: input should be",
    "docs/nowhere.md": "is not there",
    "load_modl(path)": "is no public name",
    "load_model(path, adaptor=...)": "has no argument adaptor",
    "pip install 'glmtune[tensorbord]'": "no extra tensorbord",
    "to=gguf": "is no kind of export",
}


@pytest.mark.parametrize("hint", WRONG)
def test_a_hint_that_leads_nowhere_is_found(hint: str) -> None:
    problem = follow(hint)[0]
    assert WRONG[hint] in problem


SPOKEN = [
    ("chat", "template=chatglm2 or template=chatglm3", "--template chatglm2 or --template chatglm3"),
    ("chat", "wider: dtype=fp32; or it is damaged", "wider: --dtype fp32; or it is damaged"),
    ("train", "say which: template=chatglm2", "say which: template=chatglm2"),
    ("evaluate", "name the file: data.test=FILE", "name the file: --data FILE"),
    ("evaluate", "train.lr=2e-4, template=glm4", "train.lr=2e-4, template=glm4"),
    ("export", "name another: output=FOLDER; an", "name another: --output FOLDER; an"),
    ("export", "`glmtune train model=M template=glm4`", "`glmtune train model=M template=glm4`"),
    ("verify", "base=B, or load_model(base, adapter=...)", "--base B, or load_model(base, adapter=...)"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "hint", "said"), SPOKEN)
def test_a_setting_is_said_as_the_verb_takes_it(verb: str, hint: str, said: str) -> None:
    command = program.commands[verb]
    assert name_options(hint, command) == said
    assert not unspoken(said, command)


def test_a_setting_that_a_verb_cannot_say_is_found() -> None:
    assert unspoken("train.lr=2e-4 output=NEW", program.commands["chat"]) == [
        "chat has no option for output="
    ]
