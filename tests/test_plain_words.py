"""The code reads plainly: the figures of tools/plain_words.py stay within their limits."""

from pathlib import Path

import pytest
from tools.plain_words import ROOT, VAGUE, Code

MOST_UNTYPED = 0.01
"""Of all parameters."""
MOST_HELPERS = 12
"""Private helpers with one caller, of 1,000 lines of code; there were 27."""
FEWEST_COMMENTS = 4
"""Of 100 lines of code; there were 1.4."""
CALLED_BY_TRANSFORMERS = {"_convert_id_to_token"}


@pytest.fixture(scope="module")
def code() -> Code:
    return Code(ROOT / "src" / "glmtune")


def test_no_docstring_begins_with_a_word_that_says_nothing(code: Code):
    words = tuple(f"{word} " for word in VAGUE)
    assert [where for where, text in code.docstrings() if text.startswith(words)] == []


def test_no_two_classes_share_a_name(code: Code):
    assert {name: places for name, places in code.classes().items() if len(places) > 1} == {}


def test_a_bare_any_is_rare_and_has_its_reason(code: Code):
    untyped = list(code.untyped())
    assert [each for each in untyped if not each.has_reason] == []
    assert len(untyped) <= MOST_UNTYPED * sum(1 for _ in code.parameters())


def test_no_helper_of_three_lines_has_a_single_caller(code: Code):
    once = [each for each in code.helpers() if each.num_uses == 1 and each.is_called]
    assert [each for each in once if each.num_lines <= 3 and each.name not in CALLED_BY_TRANSFORMERS] == []


def test_half_of_the_helpers_with_a_single_caller_are_gone(code: Code):
    number = sum(helper.num_uses == 1 for helper in code.helpers())
    assert 1000 * number <= MOST_HELPERS * code.num_code_lines()


def test_comments_stand_where_it_is_hard(code: Code):
    assert 100 * sum(1 for _ in code.comments()) >= FEWEST_COMMENTS * code.num_code_lines()


def test_the_figures_see_each_kind(tmp_path: Path):
    (tmp_path / "one.py").write_text(
        "class Row:\n"
        '    """What it is."""\n\n'
        "def _once(value: Any) -> int:\n"
        '    """Return it."""\n'
        "    return value  # doubled below\n\n"
        "def _handed_on(other: Any) -> None: ...  # Any: a test\n\n"
        "def use(table: dict) -> int:\n"
        "    table[0] = _handed_on\n"
        "    return 2 * _once(table)\n"
    )
    (tmp_path / "two.py").write_text("class Row: ...  # noqa\n")
    code = Code(tmp_path)
    assert [(h.name, h.num_uses, h.is_called, h.num_lines) for h in code.helpers()] == [
        ("_once", 1, True, 1),
        ("_handed_on", 1, False, 1),
    ]
    assert [(each.name, each.has_reason) for each in code.untyped()] == [
        ("_once(value)", False),
        ("_handed_on(other)", True),
    ]
    assert list(code.comments()) == ["# doubled below", "# Any: a test"]
    assert code.classes() == {"Row": ["one.py:1", "two.py:1"]}
    assert code.num_code_lines() == 8
    assert sum(text.startswith("What ") for _, text in code.docstrings()) == 1
