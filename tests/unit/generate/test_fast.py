"""W8A8: close to the exact model, faster on purpose only, and never instead of it unasked."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from closeness import assert_close
from forks import run_fork
from glmtune.errors import ConfigError
from glmtune.generate import Engine, Request, Sampling, complete, fast
from glmtune.generate.compute import speed_up
from glmtune.generate.fast import TILE_ROWS, FastExperts, FastLinear, pack_all
from glmtune.models import load_in_transformers
from glmtune.models.quant import QuantizedLinear, quantise_linears
from glmtune.processor import cpu_has
from golden import read_golden
from models import lively_model, tiny_hf_folder, tiny_model, with_prefix

if torch.backends.quantized.engine != "x86":
    pytest.skip("W8A8 needs an x86 CPU", allow_module_level=True)

IDS = torch.arange(3, 35)[None]


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_layer_is_off_by_about_one_per_cent(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 128).to(dtype)
    x = torch.randn(2, 9, 256).to(dtype)
    found = FastLinear(layer)(x)
    assert found.dtype == dtype
    assert 0 < error(found.float(), layer(x).float()) < 0.02


def test_a_product_is_as_close_on_a_processor_that_adds_in_16_bits() -> None:
    """All weights and inputs of one sign, so that every sum of two is as large as can be."""
    code = """
import torch
from torch import nn
from glmtune.generate.fast import FastLinear
torch.manual_seed(0)
layer = nn.Linear(256, 128, bias=False)
layer.weight.data.abs_().clamp_(min=layer.weight.data.max() / 2)
x = torch.rand(5, 256)
with torch.no_grad():
    exact = layer(x)
    print(float((FastLinear(layer)(x) - exact).norm() / exact.norm()))
"""
    done = run_fork(  # which has no product of FBGEMM's behind it: it reads the cap at its first
        [sys.executable, "-c", code],
        env={**os.environ, "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 0.02


@torch.no_grad()
def test_official_int8_weights_keep_their_codes() -> None:
    torch.manual_seed(0)
    layer = QuantizedLinear(nn.Linear(64, 32), 8)
    packed, _ = torch.ops.quantized.linear_unpack(FastLinear(layer).packed)
    assert torch.equal(packed.int_repr(), layer.weight)


def adapted(model: Any) -> Any:
    torch.manual_seed(1)
    settings = LoraConfig(r=4, target_modules=["query_key_value"], init_lora_weights=False)
    return get_peft_model(model, settings).eval()


def prefixed(model: Any) -> Any:
    return with_prefix(model, projection=True)


def quantised(model: Any) -> Any:
    quantise_linears(model, 4)
    return model.eval()


@pytest.mark.parametrize("change", [lambda model: model, adapted, prefixed, quantised])
@torch.no_grad()
def test_a_fast_model_is_close_to_the_exact_one_which_stays_as_it_is(change: Any) -> None:
    model = change(tiny_model(seed=3))
    exact = model(input_ids=IDS).logits
    fast = speed_up(model)
    assert 0 < error(fast(input_ids=IDS).logits, exact) < 0.05
    assert torch.equal(model(input_ids=IDS).logits, exact)
    kept = {name for name, part in fast.named_modules() if isinstance(part, nn.Linear)}
    assert all("lora_" in name or "prefix_encoder" in name for name in kept)


@pytest.mark.parametrize("has_bias", [False, True])
@torch.no_grad()
def test_a_row_is_off_by_little_more_beside_a_much_larger_one(has_bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 128, bias=has_bias)
    fast = FastLinear(layer)
    row, larger = torch.randn(1, 256), 50 * torch.randn(1, 256)
    beside = fast(torch.cat((larger, row, torch.zeros(1, 256))))
    assert error(beside[1:2], fast(row)) < 0.015
    assert error(beside[1:2], layer(row)) < 0.02
    assert torch.equal(beside[2], layer(torch.zeros(256)))


@torch.no_grad()
def test_a_fast_model_answers_in_a_batch_almost_as_alone() -> None:
    fast = speed_up(lively_model())
    together = torch.stack([(IDS[0] * step) % 60 + 3 for step in (1, 5, 7)])
    logits = fast(input_ids=together).logits
    alone = torch.cat([fast(input_ids=ids[None]).logits for ids in together])
    assert error(logits, alone) < 0.02
    greedy = Sampling(do_sample=False, max_new_tokens=4)
    prompts = together.tolist()
    singly = [complete(fast, [prompt], greedy, stop_ids=[])[0] for prompt in prompts]
    assert complete(fast, prompts, greedy, stop_ids=[], max_rows=3) == singly


@torch.no_grad()
def test_many_rows_take_the_weights_in_tiles_and_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # oneDNN's kernel is there without AMX too
    monkeypatch.setattr(fast, "cpu_has", lambda *names: "amx_int8" in names or cpu_has(*names))
    torch.manual_seed(0)
    layer = nn.Linear(256, 128)
    plain, [tiled] = FastLinear(layer), pack_all(FastLinear, [layer])
    assert torch.backends.quantized.engine == "x86"
    x = torch.randn(TILE_ROWS, 256)
    assert_close(tiled(x), plain(x))
    assert torch.equal(tiled(x[1:]), plain(x[1:]))
    tiled.packed = None
    assert_close(tiled(x), plain(x))


@torch.no_grad()
def test_without_amx_a_weight_is_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "cpu_has", lambda *names: "amx_int8" not in names)
    [layer] = pack_all(FastLinear, [nn.Linear(64, 32)])
    assert layer.tiled is None


@torch.no_grad()
def test_a_single_row_costs_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = FastLinear(nn.Linear(64, 32, bias=False))
    monkeypatch.setattr(torch.Tensor, "abs", None)
    assert quick(torch.randn(1, 1, 64)).shape == (1, 1, 32)
    with pytest.raises(TypeError):
        quick(torch.randn(2, 64))


def test_a_fast_model_is_not_saved(tmp_path: Path) -> None:
    fast = speed_up(tiny_model())
    with pytest.raises(ConfigError, match="fast"):
        fast.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="fast"):
        fast.state_dict()


def test_the_experts_are_not_saved_either(tmp_path: Path) -> None:
    folder = tiny_hf_folder(tmp_path, "GLM-4.5")
    fast = speed_up(load_in_transformers(folder, dtype="fp32", device="cpu", template="glm45"))
    experts = next(part for part in fast.modules() if isinstance(part, FastExperts))
    with pytest.raises(ConfigError, match="fast"):
        experts.state_dict()


def test_dora_which_needs_the_base_weights_is_refused() -> None:
    settings = LoraConfig(r=4, target_modules=["query_key_value"], use_dora=True)
    model = get_peft_model(tiny_model(), settings).eval()
    with pytest.raises(ConfigError, match="DoRA"):
        speed_up(model)


@torch.no_grad()
def test_between_the_products_a_bf16_model_computes_in_fp32() -> None:
    exact = lively_model()
    fast = speed_up(exact.bfloat16())
    assert fast(input_ids=IDS).logits.dtype == torch.float32
    engine = Engine(fast)
    engine.submit(Request([5, 6, 7]))
    engine.step()
    assert engine.rows.layers[0][0].dtype == torch.float32


@torch.no_grad()
def test_the_experts_of_glm_45_are_fast_too(tmp_path: Path) -> None:
    folder = tiny_hf_folder(tmp_path, "GLM-4.5")
    model = load_in_transformers(folder, dtype="fp32", device="cpu", template="glm45")
    fast = speed_up(model)
    assert any(isinstance(part, FastExperts) for part in fast.modules())
    assert 0 < error(fast(input_ids=IDS).logits, model(input_ids=IDS).logits) < 0.05
    halved = speed_up(model.bfloat16())
    assert error(halved(input_ids=IDS).logits, fast(input_ids=IDS).logits) < 0.05


def test_chatglm_6b_has_a_fast_output_layer_though_it_is_tied() -> None:
    model = read_golden("v1_late").model
    fast = speed_up(model)
    assert isinstance(fast.lm_head, FastLinear)
    assert fast.get_input_embeddings().weight is model.get_input_embeddings().weight
