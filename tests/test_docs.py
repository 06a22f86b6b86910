"""What the documentation says can be typed, works."""

import json
import re
import shlex
from pathlib import Path

import pytest

from commands import glmtune
from glmtune.recipe import load_recipe
from models import tiny_folder

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SMALL = {
    "train": ["data.max_tokens=400", "train.epochs=null", "train.steps=1", "samples.max_new_tokens=4"],
    "evaluate": ["evaluate.max_new_tokens=4"],
    "chat": ["--max-new-tokens", "4", "--rounds", "1"],
}


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The glmtune lines of the README, without those that need a second card."""
    lines = [line for block in blocks(READMES[0]) for line in block.splitlines()]
    return [line for line in lines if line.startswith("glmtune ")]


def test_both_languages_show_the_same_code() -> None:
    english, chinese = (blocks(path) for path in READMES)
    assert english == chinese


def test_both_languages_name_the_same_files_and_settings() -> None:
    english, chinese = (set(re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))) for path in READMES)
    assert english == chinese


def test_the_links_in_the_documentation_lead_somewhere() -> None:
    for path in [*READMES, *(ROOT / "docs").rglob("*.md"), ROOT / "examples" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_the_readmes_commands_run(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model")
    row = next(json.loads(block) for block in blocks(READMES[0]) if block.startswith("{"))
    for name in ("my.json", "test.json"):
        (tmp_path / name).write_text(json.dumps([row] * 4, ensure_ascii=False), encoding="utf-8")
    for name in ("recipes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    ran = 0
    for line in commands():
        if line.endswith("--resume") or "recipes/" in line:
            continue  # resuming and the recipes have tests of their own
        verb, *words = shlex.split(line)[1:]
        words = [word.replace("/models/chatglm3-6b", str(tmp_path / "model")) for word in words]
        done = glmtune(verb, *words, *SMALL[verb], cwd=tmp_path, typed="你好\nstop\n")
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran >= 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_a_tiny_model(path: Path, tmp_path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 25
    assert load_recipe(path).model.startswith("/models/")
    tiny_folder(tmp_path / "model")
    done = glmtune(
        "train", path, f"model={tmp_path / 'model'}", f"output={tmp_path / 'run'}", "train.epochs=null",
        "train.steps=1", "samples.max_new_tokens=4", "data.max_rows=8", cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_settings_page_is_what_the_program_prints() -> None:
    printed = glmtune("settings", "--markdown", cwd=ROOT).stdout
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8").endswith(printed)
