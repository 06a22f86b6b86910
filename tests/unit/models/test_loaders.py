"""One row a family in every table, and nobody beside the tables asks which family it is."""

from pathlib import Path

import pytest

import glmtune
from glmtune.families import FAMILIES
from glmtune.models.loaders import FAMILY_LOADERS
from glmtune.possible import REFUSALS
from glmtune.tokenizers import TOKENIZERS

SRC = Path(glmtune.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
KNOWS_THE_KIND = {"families.py", "models/loaders.py"}
"""Where the families of transformers' classes get their row."""


@pytest.mark.parametrize("table", [FAMILY_LOADERS, TOKENIZERS, REFUSALS])
def test_every_table_has_a_row_for_each_family(table: dict[str, object]) -> None:
    assert table.keys() == FAMILIES.keys()


def test_only_the_tables_know_whose_class_a_model_is() -> None:
    asking = {path.relative_to(SRC).as_posix() for path in FILES if "is_in_transformers" in path.read_text()}
    assert asking == KNOWS_THE_KIND


INNER = [path for path in FILES if path.parent == SRC / "models" and path.name != "__init__.py"]


@pytest.mark.parametrize("path", INNER, ids=lambda path: path.stem)
def test_a_model_knows_no_tokenizer(path: Path) -> None:
    """The package's face registers both with transformers; what lies in it takes ids."""
    text = path.read_text(encoding="utf-8")
    assert "glmtune.tokenizers" not in text
    assert "glmtune.conversation" not in text
