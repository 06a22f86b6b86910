"""The experiments on forgetting: their measure, the judgement of verdicts, the page of results."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks import forgetting
from benchmarks.forgetting_bases import BASES
from benchmarks.forgetting_runs import CASES, RUNGS
from benchmarks.forgetting_verdict import MOST_FALSE, Judged, auroc, curve, judged, lowest, rates
from benchmarks.measure import RESULTS
from tools.forgetting_tables import PAGES, fill
from tools.pages import DOCS

from glmtune.run_files import read_json_lines


def run(kl: float, drop: float, base: str = "b") -> Judged:
    return Judged(base, kl, drop, 0.0)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds_its_tables_of_forgetting(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert fill(text, page) == text, "python -m tools.forgetting_tables"


def test_the_area_under_the_curve_is_the_chance_of_the_right_order() -> None:
    assert auroc([run(0.1, 0.0), run(0.2, 0.0), run(0.3, 0.1)]) == 1
    assert auroc([run(0.3, 0.0), run(0.1, 0.1)]) == 0
    assert auroc([run(0.1, 0.0), run(0.3, 0.0), run(0.2, 0.1), run(0.3, 0.1)]) == (1 + 0 + 1 + 0.5) / 4


def test_the_threshold_is_the_lowest_without_false_verdicts() -> None:
    runs = [run(0.01, 0.0), run(0.1, 0.0), run(0.4, 0.06), run(0.9, 0.3)]
    assert lowest(runs) == pytest.approx(0.2)
    assert rates(runs, lowest(runs)) == (0, 1)
    assert curve(runs)[0] == (0, 0)
    assert curve(runs)[-1] == (1, 1)


def test_the_results_hold_to_the_share_of_false_verdicts() -> None:
    runs = judged(read_json_lines(RESULTS / "forgetting.jsonl"))
    assert rates(runs, lowest(runs))[0] <= MOST_FALSE


def test_a_divergence_is_the_sum_over_the_vocabulary_and_of_the_likeliest_no_more() -> None:
    base = torch.tensor([[0.5, 0.25, 0.25]]).log()
    tuned = torch.tensor([[0.25, 0.5, 0.25]]).log()
    by_hand = 0.5 * torch.tensor(2.0).log() - 0.25 * torch.tensor(2.0).log()
    torch.testing.assert_close(forgetting.divergence(base, tuned), by_hand[None])
    one, two = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    whole = forgetting.divergence(one, two)
    assert bool((forgetting.divergence_of_likeliest(one, two, 10) <= whole + 1e-6).all())
    torch.testing.assert_close(forgetting.divergence_of_likeliest(one, two, 39), whole)


@pytest.mark.parametrize("kind", ["grid", "verdict", "ways", "identity"])
def test_each_run_has_a_name_of_its_own(kind: str, tmp_path: Path) -> None:
    cases = list(CASES[kind](BASES["glm-tiny"](tmp_path), 2))
    assert len({name for name, _, _ in cases}) == len(cases) > 1


def test_halving_makes_at_most_forty_runs_and_goes_on_with_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "runs.jsonl"
    monkeypatch.setattr("benchmarks.forgetting_runs.RESULT", result)
    made = []
    for name, _, facts in CASES["front"](BASES["glm-tiny"](tmp_path), 3):
        made.append(name)
        # the higher the rate, the better in both
        figures = {"task_loss": 1 / facts["train"]["lr"], "kl": 1 / facts["train"]["lr"]}
        with result.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": "front", "name": name, **figures}) + "\n")
    assert len(set(made)) == len(made) <= 40
    last = RUNGS[-1][1]
    assert all(name.startswith("lr=0.01 ") for name in made[-3 * last :])


@pytest.mark.slow
def test_a_base_does_not_diverge_from_itself(tmp_path: Path) -> None:
    base = BASES["glm-tiny"](tmp_path)
    figures = forgetting.run(
        base, "identity", {"train": {"lr": 0.0, "epochs": 1}, "retain": {"ratio": 0}}, tmp_path
    )
    assert figures["kl"] == pytest.approx(0, abs=1e-6)
    assert figures["general_loss"][0] == pytest.approx(figures["general_loss"][1], rel=1e-6)
