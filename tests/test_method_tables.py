"""The tables of methods and bases in the docs are what the results say; the benchmark behind them runs."""

from collections import Counter
from pathlib import Path

import pytest
from benchmarks import methods
from tools.examples.build import make
from tools.method_tables import DOCS, PAGES, fill


@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds_its_tables_of_methods(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert fill(text, page) == text, "python -m tools.method_tables"


def test_no_held_out_talk_is_trained_on_and_each_turn_has_its_share() -> None:
    rows = methods.held_out_talks()
    trained = make()["chat_history.jsonl"]
    assert not [row for row in rows if row in trained]
    counts = Counter(len(row["history"]) for row in rows)
    assert counts.keys() == {0, 1, 2}
    assert all(10 <= count <= methods.ROWS_OF_TURN for count in counts.values())


def test_each_invented_fact_is_of_another_name() -> None:
    facts = methods.invented_facts()
    assert len({fact["prompt"] for fact in facts}) == len(facts) == methods.NUM_FACTS


@pytest.mark.slow
def test_a_run_learns_what_it_is_taught_and_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "NUM_FACTS", 8)
    words = ["facts", "--only", "all linear", "--seeds", "1", "--dry", "--threads", "1"]
    [run] = methods.main([*words, "--work", str(tmp_path)])["runs"].values()
    assert run["exact"] > 50
    first, last = run["eval_loss"]
    assert last > first  # eight facts alone: what it knew suffers
    assert run["weights_bytes"] == 4 * 3_608_832
