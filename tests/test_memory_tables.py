"""The tables of memory in the docs are what the results say."""

import pytest
from tools.memory_tables import PAGES, fill
from tools.pages import DOCS


@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds_its_table_of_memory(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert fill(text, page) == text, "python -m tools.memory_tables"
