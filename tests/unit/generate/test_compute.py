"""Which products a model answers with is the caller's choice, and `auto` says what it has chosen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from glmtune.errors import ConfigError
from glmtune.generate import choose_compute, compute
from glmtune.generate.compute import AUTO_GAIN, measure_gain, speed_up
from glmtune.generate.fast import FastLinear
from glmtune.models import load_in_transformers
from glmtune.models.quant import quantise_linears
from glmtune.several import Adapters
from models import tiny_folder, tiny_hf_folder, tiny_model
from tuned import tune

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
    gain: float, monkeypatch: pytest.MonkeyPatch, told_lines: list[str]
) -> None:
    asked: list[int] = []

    def measured(_: Any, rows: int) -> float:
        asked.append(rows)
        return gain

    monkeypatch.setattr(compute, "measure_gain", measured)
    model = tiny_model()
    chosen = choose_compute(model, "auto", rows=16)
    assert asked == [16]
    assert (chosen is model) == (gain < AUTO_GAIN)
    assert ("takes exact" if gain < AUTO_GAIN else "takes fast") in told_lines[0]
    assert f"{gain:.1f}" in told_lines[0]


def test_auto_is_exact_where_there_is_no_fast(told_lines: list[str]) -> None:
    model = tiny_model().to("meta")
    assert choose_compute(model, "auto") is model
    assert "auto is exact here" in told_lines[0]


@needs_x86
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_gain_is_measured_of_dense_and_of_quantised_layers(bits: int | None) -> None:
    model = tiny_model()
    if bits:
        quantise_linears(model, bits)
    assert measure_gain(model.bfloat16(), 3) > 0


def test_another_word_is_refused_with_the_three_that_are_known() -> None:
    with pytest.raises(ConfigError, match="fst") as caught:
        choose_compute(tiny_model(), "fst")
    assert caught.value.hint == "compute=exact, compute=fast or compute=auto"


@needs_x86
def test_auto_is_exact_for_dora_and_says_so(told_lines: list[str]) -> None:
    settings = LoraConfig(r=4, target_modules=["query_key_value"], use_dora=True)
    model = get_peft_model(tiny_model(), settings).eval()
    assert choose_compute(model, "auto") is model
    assert "auto is exact here" in told_lines[0] and "DoRA" in told_lines[0]


def test_adapters_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Engine\(adapters\)"):
        choose_compute(Adapters("glm-tiny"), "fast")


def measured_layers(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The output sizes of the layers that are measured."""
    seen: list[int] = []

    def watched(layer: torch.nn.Linear) -> FastLinear:
        seen.append(layer.out_features)
        return FastLinear(layer)

    monkeypatch.setattr(compute, "FastLinear", watched)
    assert measure_gain(model, 2) > 0
    return seen


@needs_x86
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_block_is_measured(wrapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model()
    block = model.transformer.encoder.layers[-1]
    linears = [part.out_features for part in block.modules() if isinstance(part, torch.nn.Linear)]
    assert len(linears) == 4
    if wrapped:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["query_key_value"]))
    assert measured_layers(model, monkeypatch) == linears


@needs_x86
@pytest.mark.parametrize(("family", "count"), [("GLM-4-0414", 6), ("GLM-4.5", 7)])
def test_a_transformers_family_is_measured_with_its_mlp(
    family: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_hf_folder(tmp_path, family)
    template = {"GLM-4-0414": "glm4_0414", "GLM-4.5": "glm45"}[family]
    model = load_in_transformers(folder, dtype="fp32", device="cpu", template=template)
    assert len(measured_layers(model, monkeypatch)) == count


@needs_x86
@pytest.mark.parametrize("method", ["lora", "projected", "adalora"])
def test_a_fast_copy_answers_under_the_adapter_at_work(method: str, tmp_path: Path) -> None:
    adapters = Adapters(tiny_folder(tmp_path / "base"), dtype="fp32", device="cpu")
    adapters.add("mine", tune(tmp_path / "base", tmp_path / "mine", method))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), adapters.using("mine") as model:
        exact = model(input_ids=ids).logits
        fast = choose_compute(model, "fast")
    adapters.use(None)
    found = fast(input_ids=ids).logits
    assert float((found - exact).norm() / exact.norm()) < 0.05
