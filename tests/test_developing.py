"""docs/developing.md is complete: its blocks, written into a copy of the project, pass its checks."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "developing.md"
COPIED = (
    "src",
    "tests",
    "tools",
    "docs",
    "examples",
    "recipes",
    "pyproject.toml",
    "README.md",
    "README.zh.md",
)
COMPLETE = (
    "tests/test_architecture.py",
    "tests/test_possible.py::test_the_table_knows_every_family_method_quant_and_export",
    "tests/test_possible.py::test_the_guide_holds_the_table",
    "tests/unit/models/test_loaders.py::test_every_table_has_a_row_for_each_family",
    "tests/test_docs.py::test_the_settings_page_is_what_the_program_prints",
    "tests/cli/test_data.py::test_both_guides_show_the_same",
    "tests/cli/test_data.py::test_the_guide_shows_a_row_of_every_format_that_loads",
    "tests/unit/data/test_convert.py::test_every_format_has_a_writer",
    "tests/unit/recipe",
)
"""Tests that fail where a table, a page or a translation lacks what another has."""


@dataclass(frozen=True)
class Edit:
    """A block of the page: the files it goes into, the spot in each, and its lines."""

    paths: tuple[str, ...]
    spot: str
    text: str

    def make(self, root: Path) -> None:
        for path in self.paths:
            self._make_in(root / path)

    def _make_in(self, path: Path) -> None:
        if self.spot == "new file":
            assert not path.exists(), path
            path.write_text(self.text, encoding="utf-8")
            return
        old = path.read_text("utf-8")
        if self.spot == "at the end":
            path.write_text(old + self.text, encoding="utf-8")
            return
        kind, _, name = self.spot.rpartition(" ")
        pattern = {
            "with the": r"^()(?=from glmtune)",
            "before": rf"^()(?={name}\b.* = )",
            "instead of": rf"^({name}\b.* = .*\n)",
            "in": rf"(?s:^{name}\b[^\n]* = [{{(]\n.*?)()^[}})]",
        }[kind]
        found = re.search(pattern, old, re.MULTILINE)
        assert found, f"{path}: {self.spot}"
        text = f"{self.text}\n\n" if kind == "before" else self.text
        path.write_text(old[: found.start(1)] + text + old[found.end(1) :], encoding="utf-8")


def blocks() -> Iterator[Edit | str]:
    """The edits and the commands of the page, in order."""
    for match in re.finditer(r"^(`{3,})(\w*)\n(.*?)^\1$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        head, _, text = match[3].partition("\n")
        if match[2]:
            files, spot = re.fullmatch(r"(?:# |<!-- )(.*?): (.*?)(?: -->)?", head).groups()
            yield Edit(tuple(files.split(" and ")), spot, text)
        else:
            yield from (line for line in match[3].splitlines() if line.startswith("python "))


@pytest.mark.parametrize(
    "edit", [block for block in blocks() if isinstance(block, Edit)], ids=lambda e: e.spot
)
def test_each_block_has_its_spot(edit: Edit, tmp_path: Path) -> None:
    for path in edit.paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).exists():
            shutil.copy(ROOT / path, tmp_path / path)
    edit.make(tmp_path)
    assert all(edit.text in (tmp_path / path).read_text("utf-8") for path in edit.paths)


@pytest.mark.slow
def test_the_page_names_every_file_that_an_addition_touches(tmp_path: Path) -> None:
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)

    def run(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}:{tmp_path / 'tests'}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"

    for block in blocks():
        if isinstance(block, Edit):
            block.make(tmp_path)
        else:
            run(*block.split()[1:])
    run("-m", "ruff", "check", "-q", "--select", "I", "--fix", "src")  # as `make fix`
    run("-m", "mypy", "--cache-dir", str(tmp_path / "mypy"))
    run("-m", "ruff", "check", "src", "tools")
    run("tests/additions_at_work.py", str(tmp_path / "work"))
    run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *COMPLETE)
