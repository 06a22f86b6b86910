"""The guide of the methods: its counts are the models' own, its pictures those that the script draws."""

import re
from pathlib import Path
from typing import Any

import pytest
from tools.pictures.__main__ import EXPLAINED, PICTURES

from glmtune.methods import apply_method
from glmtune.recipe import load_recipe
from parity.test_parameter_counts import CHATGLM3_6B, CHATGLM_6B, GLM4_9B, build_meta

ROOT = Path(__file__).parents[1]

MODELS = {"ChatGLM-6B": CHATGLM_6B, "ChatGLM2-6B, ChatGLM3-6B": CHATGLM3_6B, "GLM-4-9B": GLM4_9B}
METHODS: dict[str, dict[str, Any]] = {
    "`full`": {"name": "full"},
    "`freeze`, 3 blocks": {"name": "freeze"},
    "`lora`, r = 8": {"name": "lora"},
    "`adalora`, 12 to begin with": {"name": "adalora"},
    "`ptuning`, 128 tokens": {"name": "ptuning"},
    "`ptuning` with projection": {"name": "ptuning", "projection": True},
}
"""The rows of the guide's table of counts, with the methods' defaults."""


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def table() -> dict[str, dict[str, int]]:
    """The guide's counts: method -> model -> trained weights."""
    text = (ROOT / "docs" / "methods.md").read_text("utf-8")
    found = re.search(r"^How many weights that is:\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found
    head, _, *rows = map(cells, found[1].splitlines())
    return {
        name: {model: int(count.replace(",", "")) for model, count in zip(head[1:], counts, strict=True)}
        for name, *counts in rows
    }


def test_the_guide_counts_every_method_for_every_model() -> None:
    assert table().keys() == METHODS.keys()
    assert all(counts.keys() == MODELS.keys() for counts in table().values())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_the_guides_counts_are_the_models_own(method: str, model: str) -> None:
    settings = load_recipe({"model": "m", "method": METHODS[method]}).method
    tuned = apply_method(build_meta(MODELS[model]), settings)
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert trained == table()[method][model]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_the_guide_is_drawn_by_the_script(name: str, tmp_path: Path) -> None:
    PICTURES[name]().save(tmp_path / "drawn.png")
    shown = ROOT / "docs" / "pictures" / f"{name}.png"
    assert size_of(tmp_path / "drawn.png") == size_of(shown)
    for language in ("", ".zh"):
        picture = f"{name}{language if name in EXPLAINED else ''}.png"
        assert f"](pictures/{picture})" in (ROOT / "docs" / f"methods{language}.md").read_text("utf-8")


def size_of(picture: Path) -> bytes:
    """Width and height, as a PNG file's header holds them."""
    return picture.read_bytes()[16:24]
