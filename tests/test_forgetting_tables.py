"""The experiments on forgetting: their measure, the judgement of verdicts, the page of results."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks import forgetting
from benchmarks.forgetting_bases import BASES
from benchmarks.forgetting_runs import CASES, FEW_ROWS, UNSET
from benchmarks.forgetting_verdict import MOST_FALSE, Judged, auroc, curve, judged, lowest, rates
from benchmarks.measure import RESULTS
from tools.forgetting_tables import PAGES, fill
from tools.pages import DOCS

import glmtune
from closeness import assert_close
from glmtune.run_files import read_json_lines


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> forgetting.Base:
    return BASES["glm-tiny"](tmp_path_factory.mktemp("rows"))


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
    runs = judged(read_json_lines(RESULTS / "forgetting" / "runs.jsonl"))
    assert rates(runs, lowest(runs))[0] <= MOST_FALSE


def test_a_divergence_is_the_sum_over_the_vocabulary_and_of_the_likeliest_no_more() -> None:
    base = torch.tensor([[0.5, 0.25, 0.25]]).log()
    tuned = torch.tensor([[0.25, 0.5, 0.25]]).log()
    by_hand = 0.5 * torch.tensor(2.0).log() - 0.25 * torch.tensor(2.0).log()
    assert_close(forgetting.divergence(base, tuned), by_hand[None])
    one, two = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    whole = forgetting.divergence(one, two)
    assert bool((forgetting.divergence_of_likeliest(one, two, 10) <= whole + 1e-6).all())
    assert_close(forgetting.divergence_of_likeliest(one, two, 39), whole)


@pytest.mark.parametrize("kind", ["grid", "verdict", "ways", "identity"])
def test_each_run_has_a_name_of_its_own(kind: str, base: forgetting.Base) -> None:
    cases = list(CASES[kind](base, 2))
    assert len({name for name, _, _ in cases}) == len(cases) > 1


def test_halving_makes_at_most_forty_runs_and_goes_on_with_the_best(
    base: forgetting.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "runs.jsonl"
    monkeypatch.setattr("benchmarks.forgetting_runs.RESULT", result)
    made = []
    for name, _, facts in CASES["front"](base, 3):
        made.append(name)
        # the higher the rate, the better in both
        figures = {"task_loss": 1 / facts["train"]["lr"], "kl": 1 / facts["train"]["lr"]}
        with result.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": "front", "name": name, **figures}) + "\n")
    assert len(set(made)) == len(made) <= 40
    last = [name for name in made if f"rows={FEW_ROWS}" not in name]
    unset = [name for name in last if name.startswith(f"lr={UNSET[0]:g} {UNSET[1]} ")]
    best = [name for name in last if name.startswith("lr=0.01 ")]
    assert len(unset) == 2 * 3
    assert len(best) == len(last) - len(unset) == 2 * 2 * 3


@pytest.mark.slow
def test_a_base_does_not_diverge_from_itself(base: forgetting.Base, tmp_path: Path) -> None:
    figures = forgetting.run(
        base, "identity", {"train": {"lr": 0.0, "epochs": 1}, "retain": {"ratio": 0}}, tmp_path
    )
    assert figures["kl"] == pytest.approx(0, abs=1e-6)
    assert figures["general_loss"][0] == pytest.approx(figures["general_loss"][1], rel=1e-6)


@pytest.mark.slow
def test_the_report_of_a_run_is_what_is_read_row_by_row(tmp_path: Path) -> None:
    settings = {"model": "glm-tiny", "dtype": "fp32", "device": "cpu", "output": str(tmp_path / "run")}
    glmtune.train(
        {
            **settings,
            "data": {"train": "examples/adverts.jsonl", "max_rows": 24},
            "method": {"name": "lora", "target_modules": "all_linear"},
            "train": {"lr": 3e-3, "steps": 6, "batch_size": 4, "precision": "fp32"},
            "retain": {"ratio": 0, "report_prompts": 6, "max_new_tokens": 24},
        },
        quiet=True,
    )
    base, tuned = glmtune.load_model("glm-tiny", dtype="fp32"), glmtune.load_model(tmp_path / "run/last")
    tokenizer = glmtune.load_tokenizer("glm-tiny")
    found = json.loads((tmp_path / "run/forgetting.json").read_text(encoding="utf-8"))["compared"]
    for answer in [one for one in found if one["turn"] == 1]:
        prompt = glmtune.encode_messages(tokenizer, [{"role": "user", "content": answer["question"]}])
        [ids] = forgetting.greedy(base, tokenizer, [prompt], 24)
        row = forgetting.row_of(prompt, ids, answer["name"])
        [(one, _)], [(two, _)] = (list(forgetting.learned(model, [row])) for model in (base, tuned))
        kl = forgetting.divergence_of_likeliest(one, two).mean()
        assert answer["kl"] == pytest.approx(float(kl), rel=1e-3, abs=1e-5)
