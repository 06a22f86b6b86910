"""The layers written out give what the model's own modules give, which stay where they say more."""

from typing import Any

import pytest
import torch

from closeness import assert_close
from glmtune.generate import passes
from glmtune.generate.kv_cache import KvCache
from glmtune.generate.lean import LeanLayers, RotaryAngles, has_plain_layers
from glmtune.generate.passes import PromptPass, RowSpan, StepPass
from glmtune.generate.runner import LayerRunner, PrefillPrompt
from glmtune.models.chatglm2_layers import rotate_pairs
from glmtune.models.quant import quantise_linears
from models import lively_model, with_lora

PROMPTS = ([5, 6, 7, 8, 9, 10], [40, 41, 42])


def begun(model: Any) -> tuple[LayerRunner, KvCache, torch.Tensor]:
    """A runner whose rows hold the prompts, and the positions that follow."""
    runner, cache = LayerRunner(model), KvCache()
    cache.add(len(PROMPTS))
    _, positions = runner.prefill(cache, [PrefillPrompt(i, ids, 0) for i, ids in enumerate(PROMPTS)])
    return runner, cache, positions


@torch.inference_mode()
def step_both_ways(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states after one more token in each row: written out, and by the modules."""
    runner, cache, positions = begun(model)
    assert runner.lean
    tokens = torch.tensor([[11], [12]])
    lean = runner._run(tokens, positions, StepPass(cache, dtype=runner.dtype, device=runner.device))
    again = StepPass(cache, dtype=runner.dtype, device=runner.device)  # writes the same columns
    return lean, runner._run_modules(model.get_input_embeddings()(tokens), positions, again)


@torch.inference_mode()
def read_both_ways(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the prompts in one packed pass: written out, and by the modules."""
    runner, cache, _ = begun(model)
    assert runner.lean
    ids = torch.tensor([[token for prompt in PROMPTS for token in prompt]])
    positions = torch.tensor([[place for prompt in PROMPTS for place in range(len(prompt))]])
    parts = [RowSpan(row, 0, len(prompt), None) for row, prompt in enumerate(PROMPTS)]
    lean = runner._run(ids, positions, PromptPass(cache, parts))
    return lean, runner._run_modules(model.get_input_embeddings()(ids), positions, PromptPass(cache, parts))


def with_two(model: Any) -> Any:
    return with_lora(model, "query_key_value", "dense_h_to_4h")


def with_codes(model: Any) -> Any:
    quantise_linears(model, 8)
    return model


def with_hook(model: Any) -> Any:
    model.transformer.encoder.layers[0].mlp.dense_4h_to_h.register_forward_hook(lambda *said: said[2] * 3)
    return model


@pytest.mark.parametrize("both", [step_both_ways, read_both_ways])
@pytest.mark.parametrize("change", [lambda model: model, with_two, with_codes, with_hook])
def test_in_fp32_the_hidden_states_are_the_modules(change: Any, both: Any) -> None:
    lean, own = both(change(lively_model()))
    assert_close(lean, own)


@pytest.mark.parametrize("both", [step_both_ways, read_both_ways])
def test_in_bf16_they_are_equal_to_the_last_bit(both: Any) -> None:
    lean, own = both(lively_model().bfloat16())
    assert lean.dtype == torch.bfloat16
    assert torch.equal(lean, own)


def test_a_layer_that_was_given_more_to_do_is_not_written_out() -> None:
    model = lively_model()
    assert has_plain_layers(model.transformer)
    model.transformer.encoder.layers[1].register_forward_hook(lambda *_: None)
    assert not has_plain_layers(model.transformer)


@torch.inference_mode()
def test_an_adapter_that_came_later_is_seen_from_the_next_prompt_on() -> None:
    model = lively_model()
    runner, _, _ = begun(model)
    before = runner.lean
    with_two(model)
    cache = KvCache()
    cache.add()
    runner.prefill(cache, [PrefillPrompt(0, PROMPTS[0], 0)])
    assert isinstance(before, LeanLayers)
    assert runner.lean is not before
    assert runner.lean
    assert (
        runner.lean.layers[0].query_key_value
        is model.transformer.encoder.layers[0].self_attention.query_key_value
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_looked_up_turns_are_the_computed_ones(dtype: torch.dtype) -> None:
    rotary = lively_model().transformer.rotary_pos_emb
    turns = RotaryAngles(rotary, dtype, torch.device("cpu"))
    heads = torch.randn(3, 6, 1, 2 * rotary.dim).to(dtype)
    for positions in (torch.tensor([[0], [4], [2]]), torch.tensor([[900], [5], [17]])):  # the table grows
        looked_up = turns.at(positions, int(positions.max()) + 1)(heads)
        assert_close(looked_up, rotate_pairs(heads, rotary(positions, dtype)))


@pytest.mark.parametrize(
    ("has_tiles", "width", "are_quicker"), [(False, 4096, True), (True, 768, True), (True, 2048, False)]
)
def test_products_of_onednn_are_quicker_for_wide_layers_with_amx(
    monkeypatch: pytest.MonkeyPatch, has_tiles: bool, width: int, are_quicker: bool
) -> None:
    monkeypatch.setattr(passes, "cpu_has", lambda *_: has_tiles)
    cpu = torch.device("cpu")
    assert passes.are_own_quicker(torch.bfloat16, cpu, width) == are_quicker
    assert not passes.are_own_quicker(torch.float32, cpu, width)
    assert not passes.are_own_quicker(torch.bfloat16, torch.device("cuda"), width)


def test_a_single_row_in_bf16_takes_torchs_own_products_and_leaves_the_switch_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    model = lively_model().bfloat16()
    runner, cache, positions = begun(model)
    cache.keep_first(1)
    model.transformer.output_layer.register_forward_hook(
        lambda *_: seen.append(torch.backends.mkldnn.enabled)
    )
    with torch.inference_mode():
        runner.step(cache, torch.tensor([[11]]), positions[:1])
    assert seen == [False]
    assert torch.backends.mkldnn.enabled
    monkeypatch.setattr(runner, "_run", lambda *_: 1 / 0)
    with torch.inference_mode(), pytest.raises(ZeroDivisionError):
        runner.step(cache, torch.tensor([[11]]), positions[:1])
    assert torch.backends.mkldnn.enabled


def test_several_rows_in_bf16_do_not() -> None:
    seen: list[Any] = []
    model = lively_model().bfloat16()
    runner, cache, positions = begun(model)
    model.transformer.output_layer.register_forward_hook(
        lambda *_: seen.append(torch.backends.mkldnn.enabled)
    )
    with torch.inference_mode():
        runner.step(cache, torch.tensor([[11], [12]]), positions)
    assert seen == [True]
