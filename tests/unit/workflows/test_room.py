"""A run that does not fit is refused before its weights are read."""

from dataclasses import replace

import pytest

from glmtune.recipe import load_recipe
from glmtune.workflows.forecast import Forecast, Machine, Phase
from glmtune.workflows.room import find_refusal, forecast_facts, forecast_lines

GIB = 2**30
FITTING = Forecast(
    machine=Machine("this machine", "cpu", 4 * GIB, has_bf16=False),
    recipe=load_recipe({"model": "m"}),
    phases=(
        Phase("training", {"weights": 2 * GIB, "adapter": 2**20, "activations": GIB}),
        Phase("evaluation", {"weights": 2 * GIB, "KV cache": GIB // 2}),
    ),
    tokens=2041,
    recomputed=0,
    disk=GIB,
    fits=True,
)


def test_a_forecast_is_two_lines_with_the_parts_that_matter() -> None:
    assert list(forecast_lines(FITTING)) == [
        "forecast: about 3.0 GiB of 4.0 GiB free, 2,041 tokens at once: weights 2.0 GiB, activations 1.0 GiB",
        "forecast: evaluation 2.5 GiB; disk 1.0 GiB at most",
    ]


def test_what_fits_is_not_refused() -> None:
    assert find_refusal(FITTING) is None


@pytest.mark.parametrize("is_resumed", [False, True])
def test_what_does_not_fit_is_refused_with_words_to_paste(*, is_resumed: bool) -> None:
    unfit = replace(FITTING, fits=False, hint="these settings would fit: quant=int4")
    refusal = find_refusal(unfit, is_resumed=is_resumed)
    assert str(refusal) == "memory: this run would need about 3.0 GiB, too close to the 4.0 GiB free"
    small = replace(unfit, machine=replace(FITTING.machine, free=2 * GIB))
    assert str(find_refusal(small)) == "memory: this run would need about 3.0 GiB, but 2.0 GiB are free"
    assert refusal is not None
    assert refusal.hint.endswith("these settings would fit: quant=int4")
    assert refusal.hint.startswith("a run is resumed as it began") == is_resumed


def test_the_recorded_forecast_sums_up_its_parts() -> None:
    facts = forecast_facts(FITTING)
    for phase in facts["phases"].values():
        assert phase["bytes"] == sum(phase["parts"].values())
    assert facts["machine"]["name"] == "this machine"
