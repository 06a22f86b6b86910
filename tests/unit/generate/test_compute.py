"""Which products a model answers with is the caller's choice, and `auto` says what it has chosen."""

from typing import Any

import pytest
import torch

from glmtune.errors import ConfigError
from glmtune.generate import choose_compute, compute
from glmtune.generate.compute import AUTO_GAIN, measure_gain, speed_up
from glmtune.generate.fast import FastLinear
from glmtune.models.quant import quantise_linears
from models import tiny_model

needs_x86 = pytest.mark.skipif(torch.backends.quantized.engine != "x86", reason="W8A8 needs an x86 CPU")


def test_exact_is_the_model_itself() -> None:
    model = tiny_model()
    assert choose_compute(model, "exact") is model


@needs_x86
def test_fast_is_another_model() -> None:
    assert isinstance(choose_compute(tiny_model(), "fast").transformer.output_layer, FastLinear)


def test_other_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="x86"):
        speed_up(tiny_model().to("meta"))


@needs_x86
@pytest.mark.parametrize("gain", [AUTO_GAIN - 0.1, AUTO_GAIN])
def test_auto_takes_fast_only_where_it_is_faster_and_says_so(
    gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    said: list[str] = []

    def measured(_: Any, rows: int) -> float:
        asked.append(rows)
        return gain

    monkeypatch.setattr(compute, "measure_gain", measured)
    monkeypatch.setattr(compute, "tell", said.append)
    model = tiny_model()
    chosen = choose_compute(model, "auto", rows=16)
    assert asked == [16]
    assert (chosen is model) == (gain < AUTO_GAIN)
    assert ("takes exact" if gain < AUTO_GAIN else "takes fast") in said[0]
    assert f"{gain:.1f}" in said[0]


def test_auto_is_exact_where_there_is_no_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(compute, "tell", said.append)
    model = tiny_model().to("meta")
    assert choose_compute(model, "auto") is model
    assert "auto is exact here" in said[0]


@needs_x86
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_gain_is_measured_of_dense_and_of_quantised_layers(bits: int | None) -> None:
    model = tiny_model()
    if bits:
        quantise_linears(model, bits)
    assert measure_gain(model.bfloat16(), 3) > 0
