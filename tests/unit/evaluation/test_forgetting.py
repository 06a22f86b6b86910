"""The figures of the report of forgetting: means, intervals, shares and the verdict, of answers made here."""

import json
import math
from typing import Any

import numpy as np
import pytest

from glmtune.contents import find_fault
from glmtune.errors import TrainingError
from glmtune.evaluation import forgetting
from glmtune.evaluation.forgetting import (
    GeneralAnswer,
    Said,
    TaskRow,
    bootstrap,
    count_leaks,
    find_identity,
    judge,
    paired,
    repeated,
    runs_of,
)


def said(text: str, *, is_ended: bool = True) -> Said:
    return Said(tuple(map(ord, text)), text, is_ended)


def compared(kls: list[float], **facts: Any) -> GeneralAnswer:
    base = np.arange(len(kls), dtype=float)
    given = {
        "name": "en-knowledge-01",
        "category": "knowledge",
        "language": "en",
        "turn": 1,
        "question": "Why is the sky blue?",
        "base": said("Because light is scattered."),
        "tuned": said("Because light is scattered."),
    }
    return GeneralAnswer(base_losses=base, tuned_losses=base + 0.5, kls=np.array(kls), **(given | facts))


def found(*answers: GeneralAnswer, **facts: Any) -> forgetting.Forgetting:
    return judge(answers, **{"drifted": 0.05, "forgot": 0.2, **facts})


@pytest.mark.parametrize(
    ("kl", "verdict"),
    [
        (0.0, "kept"),
        (0.0499, "kept"),
        (0.05, "drifted"),
        (0.1999, "drifted"),
        (0.2, "forgot"),
        (3.0, "forgot"),
    ],
)
def test_verdict_changes_at_its_thresholds(kl: float, verdict: str) -> None:
    report = found(compared([kl, kl]), compared([kl], name="zh-code-02"))
    assert report.verdict == verdict
    assert f"{kl:.3g} nats a token" in report.reason


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_an_error_and_no_verdict(wrong: float) -> None:
    with pytest.raises(TrainingError, match=r"1 of 2 answers: a figure is .*first in zh-code-02"):
        found(compared([0.0, 0.0]), compared([0.0, wrong], name="zh-code-02"))


def test_a_report_of_few_prompts_says_so_of_its_interval() -> None:
    answers = [compared([0.1], name=f"en-code-{i:02}") for i in range(8)]
    assert "the interval tells nothing" not in found(*answers).reason
    assert "of fewer than 8 prompts the interval tells nothing" in found(*answers[1:]).reason
    assert found(answers[0]).reason.startswith("on 1 general prompt 0.1 nats")


def test_divergence_is_the_mean_over_tokens_not_over_answers() -> None:
    report = found(compared([1.0]), compared([0.0, 0.0, 0.0], name="zh-code-02"))
    assert report.kl.mean == 0.25
    assert report.loss_rise.mean == 0.5


def test_interval_is_that_of_draws_of_whole_prompts() -> None:
    numbers = np.random.default_rng(5).exponential(size=(40, 7))
    interval = bootstrap((i, numbers[i]) for i in range(40))
    means = numbers.mean(1)  # of prompts of equal length: the draws' spread is that of a mean of 40 numbers
    spread = means.std() / np.sqrt(40)
    assert interval.mean == pytest.approx(numbers.mean(), rel=1e-12)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    # the turns of one prompt are one group: twice the same figures tell no more than once
    assert bootstrap([(i, numbers[i]) for i in range(40)] * 2) == interval


def test_the_same_figures_have_the_same_interval() -> None:
    values = [(i, np.array([float(i), 1.0])) for i in range(9)]
    assert bootstrap(values) == bootstrap(values)


def test_a_run_that_teaches_a_name_is_not_judged_by_who_the_model_is() -> None:
    identity = compared([9.0], name="zh-identity-01", category="identity")
    report = found(compared([0.01]), identity, leaves_out="identity")
    assert report.verdict == "kept"
    assert report.prompts == 1
    assert report.facts()["by"]["category"]["identity"]["kl"] == 9.0


def test_facts_are_json_that_the_reader_accepts() -> None:
    tuned = said("我叫小橙，由橙子训练。", is_ended=False)
    report = found(
        compared([0.4, 0.2], tuned=tuned),
        compared([0.1], name="zh-identity-01", category="identity", language="zh", turn=2, tuned=tuned),
        task=[
            TaskRow(np.array([4.0, 2.0]), np.array([1.0, 2.0]), np.array([0.3, 0.1])),
            TaskRow(*[np.array([])] * 3),
        ],
        training_loss=np.log(20.0),
        names=("小橙",),
        step=7,
    )
    facts = json.loads(json.dumps(report.facts()))
    assert find_fault("forgetting.json", facts) is None
    change = {"mean": -1.5, "low": -1.5, "high": -1.5}
    assert facts["task"] == {
        "kl": {"mean": 0.2, "low": 0.2, "high": 0.2},
        "rows": 1,
        "loss": {"base": 3.0, "tuned": 1.5, "change": change},
    }
    assert facts["training_perplexity_of_base"] == pytest.approx(20)
    assert facts["changed_share"] == 1
    assert facts["ended_share"] == {"base": 1.0, "tuned": 0.0}
    assert facts["identity"]["hits"] == facts["identity"]["leaks"] == 1
    assert facts["by"]["turn"]["2"]["answers"] == 1


@pytest.mark.parametrize("missing", ["verdict", "kl", "by", "compared", "leaked"])
def test_facts_without_a_figure_are_refused(missing: str) -> None:
    facts = found(compared([0.1])).facts()
    del facts[missing]
    assert missing in str(find_fault("forgetting.json", facts))


def test_an_answer_leaks_if_it_looks_like_training_and_the_base_does_not() -> None:
    advert = "这条裙子采用柔软的面料，版型宽松，穿着舒适。"
    runs = runs_of(advert) | runs_of("This dress is made of soft cloth and it fits well.")
    same = compared([0.0], base=said(advert), tuned=said(advert))
    leaked = compared([2.0], tuned=said("这条裙子采用柔软的面料，版型宽松。"))
    english = compared([2.0], tuned=said("This dress is made of soft cloth."))
    clean = compared([0.1], tuned=said("Light of short waves is scattered most."))
    assert count_leaks([same, leaked, english, clean], runs) == (2, 1)


def test_a_short_answer_leaks_only_if_it_is_a_whole_training_answer() -> None:
    runs = runs_of("好的") | runs_of("好的，我来帮你看看这件事")
    assert count_leaks([compared([1.0], tuned=said("好的"))], runs) == (1, 0)
    assert count_leaks([compared([1.0], tuned=said("帮你"))], runs) == (0, 0)


def test_repetition_is_the_share_of_runs_that_stood_before() -> None:
    assert repeated([1, 2, 3, 4, 5, 6]) == 0
    assert repeated([1, 2, 3, 4] * 3) == 1 - 4 / 9
    assert repeated([7] * 10) == 1 - 1 / 7
    assert repeated([1, 2]) == 0


def test_names_are_counted_where_asked_and_elsewhere() -> None:
    new = said("I am Little Orange.")
    answers = [
        compared([1.0], category="identity", tuned=new),
        compared([1.0], category="identity"),
        compared([1.0], tuned=new),
        compared([1.0], tuned=new, question="Tell a story of Little Orange."),
        compared([1.0]),
        compared([1.0], category="small_talk", tuned=new, question="Hello"),  # where a name is no leak
    ]
    identity = find_identity(answers, ("little orange",))
    assert (identity.hits, identity.asked, identity.leaks, identity.unrelated) == (1, 2, 1, 3)


def test_paired_difference_is_told_from_noise() -> None:
    draw = np.random.default_rng(3)
    theirs = draw.normal(30, 10, 60)
    better = theirs + draw.normal(3, 1, 60)
    interval, is_real = paired(better, theirs)
    assert is_real
    assert interval.low < interval.mean < interval.high
    noise, is_real = paired(theirs + draw.normal(0, 5, 60), theirs)
    assert not is_real
    assert noise.low < 0 < noise.high
