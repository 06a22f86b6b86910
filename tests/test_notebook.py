"""The notebook in `examples/` does what it says, from its first cell to its last."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "few_shot.ipynb"


def cells() -> list[dict[str, object]]:
    return list(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"])


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells()):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])  # type: ignore[arg-type]
            exec(compile(source, f"cell {number}", "exec"), names)
    assert (tmp_path / "few_shot" / "merged" / "model.safetensors").exists()


def test_it_was_saved_with_what_its_cells_print() -> None:
    printing = [cell for cell in cells() if "print(" in "".join(cell["source"])]  # type: ignore[arg-type]
    assert printing
    assert all(cell["outputs"] for cell in printing)
    assert not [output for cell in printing for output in cell["outputs"] if output.get("name") == "stderr"]  # type: ignore[attr-defined]
