"""The notebooks in `examples/` do what they say, in both languages and every time."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = {"few_shot": "few_shot", "adalora": "few_shot_adalora", "t4": "t4"}
"""The folder that each writes into."""
NAMES = [f"{notebook}{language}.ipynb" for notebook in NOTEBOOKS for language in ("", ".zh")]


def cells(name: str, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def sources(name: str, kind: str = "code") -> list[str]:
    return ["".join(cell["source"]) for cell in cells(name, kind)]


def shown(name: str) -> Iterator[dict[str, Any]]:
    for cell in cells(name, "code"):
        yield from cell["outputs"]


def run_cells(notebook: str, *, times: int) -> None:
    """Run each cell so many times in a kernel of its own."""
    kernel: dict[str, object] = {"__name__": "__main__"}
    for number, source in enumerate(sources(f"{notebook}.ipynb")):
        for _ in range(times):
            exec(compile(source, f"cell {number}", "exec"), kernel)


@pytest.mark.slow
def test_every_cell_runs_twice_and_again_in_a_new_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_cells("few_shot", times=2)
    run_cells("few_shot", times=1)
    for number in (1, 2, 3):
        assert (tmp_path / "few_shot" / f"merged-{number}" / "model.safetensors").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"few_shot"}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", ["adalora", "t4"])
def test_without_a_card_every_cell_runs_twice(
    notebook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run_cells(notebook, times=2)
    assert {path.name for path in tmp_path.iterdir()} == {NOTEBOOKS[notebook]}
    for number in (1, 2):
        assert any((tmp_path / NOTEBOOKS[notebook] / f"merged-{number}").glob("*.safetensors"))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_both_notebooks_have_the_same_code_and_as_many_paragraphs(notebook: str) -> None:
    names = [f"{notebook}.ipynb", f"{notebook}.zh.ipynb"]
    assert sources(names[0]) == sources(names[1])
    english, chinese = (sources(name, "markdown") for name in names)
    assert len(english) == len(chinese)
    for one, other in zip(english, chinese, strict=True):
        assert one.count("`") == other.count("`")
        assert one.startswith("#") == other.startswith("#")
    assert all(ord(letter) < 0x2E80 for text in english for letter in text.replace("中文", ""))


@pytest.mark.parametrize("name", NAMES)
def test_they_use_public_names_alone(name: str) -> None:
    for source in sources(name):
        imported = [line for line in source.splitlines() if line.lstrip().startswith(("import", "from"))]
        assert not [line for line in imported if "glmtune" in line and line != "import glmtune"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_was_saved_with_what_its_cells_print(name: str) -> None:
    code = cells(name, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    printing = [cell for cell in code if "    print(" in "".join(cell["source"])]
    assert printing
    assert all(cell["outputs"] for cell in printing)
    assert not [output for output in shown(name) if output["output_type"] == "error"]
    said = "".join("".join(output.get("text", "")) for output in shown(name))
    assert "Evaluation Loss" in said, "the progress of the training is missing"
    assert not re.findall(r"(?:^|[\s(:])/\w.*", said), "a path of the machine it ran on"
