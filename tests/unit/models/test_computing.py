"""A model whose frozen weights are held in one type and computed in another: arranged, used, copied, cast."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from closeness import assert_close
from glmtune.generate import Engine, Request, Sampling
from glmtune.generate.compute import speed_up
from glmtune.generate.kv_cache import KvCache
from glmtune.generate.runner import PrefillPrompt, build_runner
from glmtune.load import load_location
from glmtune.locations import resolve
from glmtune.models.computing import HeldEmbedding, HeldExperts, compute_in, computes_in
from glmtune.models.dtype import Choice
from glmtune.models.frozen_linear import FrozenLinear, HeldLinear
from glmtune.models.quant import quantised_layers
from models import HF_FAMILIES, tiny_folder, tiny_hf_folder, tiny_v1_folder

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
EXACT = 1e-6
FAMILIES: dict[str, Callable[..., Path]] = {
    "ChatGLM-6B": partial(tiny_v1_folder, lively=(12, 12)),
    "ChatGLM3": partial(tiny_folder, lively=8),
    **{family: partial(tiny_hf_folder, family=family) for family in HF_FAMILIES},
}
ALL_FAMILIES = pytest.mark.parametrize("family", list(FAMILIES))


@pytest.fixture(params=[BF16, FP16], ids=["bf16", "fp16"])
def held(request: pytest.FixtureRequest) -> torch.dtype:
    kind: torch.dtype = request.param
    return kind


def open_in(folder: Path, held: torch.dtype, computing: torch.dtype, quant: str | None = None) -> Any:
    choice = Choice(held, computing)
    return load_location(resolve(folder), template=None, dtype=choice, device="cpu", quant=quant).eval()


@torch.no_grad()
def logits(model: Any, length: int = 12) -> torch.Tensor:
    ids = torch.arange(5, 5 + length)[None]
    if hasattr(model.config, "mask_ids"):  # ChatGLM-6B finds its positions by these
        ids[0, -3], ids[0, -2] = model.config.mask_ids[1], model.config.bos_token_id
    answer: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return answer


@ALL_FAMILIES
def test_weights_stay_as_they_are_stored_and_logits_are_those_of_fp32(
    family: str, held: torch.dtype, tmp_path: Path
) -> None:
    folder = FAMILIES[family](tmp_path, dtype=held)
    stored, model, wide = (open_in(folder, *kinds) for kinds in ((held, held), (held, FP32), (FP32, FP32)))
    assert (model.dtype, computes_in(model)) == (held, FP32)
    state, expected = model.state_dict(), stored.state_dict()
    assert state.keys() == expected.keys()
    assert all(tensor.dtype == expected[name].dtype for name, tensor in state.items())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    found = logits(model)
    assert found.dtype == FP32
    assert_close(found, logits(wide), share=EXACT)


@ALL_FAMILIES
def test_fp16_computed_in_bf16_stays_in_bf16_from_the_first_layer_to_the_last(
    family: str, tmp_path: Path
) -> None:
    folder = FAMILIES[family](tmp_path, dtype=FP16)
    model, wide = open_in(folder, FP16, BF16), open_in(folder, FP32, FP32)
    kinds: set[torch.dtype] = set()
    for part in model.modules():
        if isinstance(part, HeldLinear):
            part.register_forward_hook(lambda _, given, result: kinds.update((given[0].dtype, result.dtype)))
    assert_close(logits(model).float(), logits(wide), share=0.1)
    assert kinds == {BF16}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "GLM-4.5"])  # sums experts otherwise
def test_fp16_rounded_to_bf16_while_read_gives_the_products_of_fp16_rounded_at_each(
    family: str, tmp_path: Path
) -> None:
    folder = FAMILIES[family](tmp_path, dtype=FP16)
    at_each, read = open_in(folder, FP16, BF16), open_in(folder, BF16, BF16)
    assert {part.dtype for part in read.parameters()} == {BF16}
    for part in at_each.modules():  # norms multiply by their weights as they are held
        if not isinstance(part, nn.Linear | nn.Embedding):
            for weight in part.parameters(recurse=False):
                weight.data.copy_(weight.data.bfloat16())
    assert torch.equal(logits(at_each), logits(read))


def test_arranging_twice_is_arranging_once(tmp_path: Path) -> None:
    model = open_in(tiny_folder(tmp_path, dtype=BF16), BF16, FP32)
    parts = dict(model.named_modules())
    compute_in(model, FP32)
    assert all(part is parts[name] for name, part in model.named_modules())
    compute_in(model, BF16)
    assert logits(model).dtype == computes_in(model) == BF16


def test_a_model_that_computes_in_the_type_it_is_held_in_stays_as_it_was_built(tmp_path: Path) -> None:
    model = open_in(tiny_folder(tmp_path, dtype=BF16), BF16, BF16)
    assert not any(isinstance(part, FrozenLinear | HeldEmbedding) for part in model.modules())


@pytest.mark.parametrize("cast", [FP32, BF16, FP16])
def test_a_cast_of_the_model_is_a_cast_of_what_it_computes_in(cast: torch.dtype, tmp_path: Path) -> None:
    model = open_in(tiny_folder(tmp_path, dtype=FP16), FP16, BF16).to(cast)
    expected = BF16 if cast == FP16 else cast  # to the type it is held in: no cast at all
    assert logits(model).dtype == computes_in(model) == expected


def test_a_copy_answers_as_its_original(held: torch.dtype, tmp_path: Path) -> None:
    model = open_in(tiny_hf_folder(tmp_path, "GLM-4.5", dtype=held), held, FP32)
    assert any(isinstance(part, HeldExperts) for part in model.modules())
    assert torch.equal(logits(deepcopy(model)), logits(model))


def test_what_is_saved_opens_with_the_same_numbers(held: torch.dtype, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "a", dtype=held)
    model = open_in(folder, held, FP32)
    tiny_folder(tmp_path / "b")  # the small files
    model.save_pretrained(tmp_path / "b")
    assert torch.equal(logits(open_in(tmp_path / "b", held, FP32)), logits(model))


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_codes_made_of_held_weights_are_those_made_while_loading(quant: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, dtype=BF16)
    made, loaded = open_in(folder, BF16, FP32), open_in(folder, BF16, FP32, quant)
    made.quantize({"int8": 8, "int4": 4}[quant])
    assert len(quantised_layers(made)) == len(quantised_layers(loaded)) > 0
    assert torch.equal(logits(made), logits(loaded))
    assert logits(made).dtype == FP32


def test_a_merge_rounds_once_to_the_type_that_is_held(held: torch.dtype, tmp_path: Path) -> None:
    model = open_in(tiny_folder(tmp_path, dtype=held, lively=4), held, FP32)
    settings = LoraConfig(r=4, target_modules=["query_key_value"], init_lora_weights=False)
    torch.manual_seed(0)
    tuned = get_peft_model(model, settings).eval()
    apart = logits(tuned)
    merged = tuned.merge_and_unload()
    assert merged.dtype == held
    assert computes_in(merged) == FP32
    assert_close(logits(merged), apart, share=2e-2 if held == BF16 else 3e-3)


@pytest.mark.parametrize("family", ["ChatGLM3", "GLM-4.5"])
def test_w8a8_of_held_weights_is_that_of_fp32_weights(family: str, held: torch.dtype, tmp_path: Path) -> None:
    if torch.backends.quantized.engine != "x86":
        pytest.skip("W8A8 is for x86")
    folder = FAMILIES[family](tmp_path, dtype=held)
    narrow, wide = (speed_up(open_in(folder, kind, FP32)) for kind in (held, FP32))
    assert_close(logits(narrow), logits(wide), share=2e-2)


@pytest.mark.parametrize("family", ["ChatGLM-6B", "ChatGLM3", "GLM-4-0414"])
def test_the_engine_answers_as_with_fp32_weights(family: str, tmp_path: Path) -> None:
    folder = FAMILIES[family](tmp_path, dtype=BF16)

    def answer(model: Any) -> list[int]:
        engine = Engine(model)
        prompt = [5, 6, 7, 8]
        if hasattr(model.config, "mask_ids"):
            prompt += [model.config.mask_ids[1], model.config.bos_token_id]
        engine.submit(Request(prompt, Sampling(temperature=0, max_new_tokens=6), ()))
        ids = [token.id for token in engine.step()]
        assert {part.dtype for layer in engine.rows.layers for part in layer} == {FP32}
        while not engine.is_idle:
            ids += [token.id for token in engine.step()]
        return ids

    assert answer(open_in(folder, BF16, FP32)) == answer(open_in(folder, FP32, FP32))


def test_no_weight_is_cast_as_a_whole_to_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A loaded model's weights require gradients until a method freezes them, and no answer needs those."""
    model = open_in(tiny_hf_folder(tmp_path, "GLM-4.5", dtype=BF16), BF16, FP32)
    assert all(p.requires_grad for p in model.parameters())
    by_whole_weights: list[torch.Size] = []
    plain = torch.nn.functional.linear

    def watch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        by_whole_weights.append(weight.shape)
        return plain(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watch)
    logits(model)
    routers = {part.weight.shape for name, part in model.named_modules() if name.endswith(".gate")}
    assert set(by_whole_weights) == routers


def test_an_expert_is_multiplied_without_a_layer_being_drawn(
    held: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = open_in(tiny_hf_folder(tmp_path, "GLM-4.5", dtype=held), held, FP32)

    def draw(_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", draw)
    assert logits(model).isfinite().all()


def test_a_loaded_model_that_is_trained_as_it_is_has_all_gradients(held: torch.dtype, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, dtype=held)
    narrow, wide = open_in(folder, held, FP32), open_in(folder, FP32, FP32)
    ids = torch.arange(5, 17)[None]
    for model in (narrow, wide):
        model(input_ids=ids, labels=ids).loss.backward()
    expected = dict(wide.named_parameters())
    for name, parameter in narrow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == held
        rounded = expected[name].grad.to(held).float()
        assert_close(parameter.grad.float(), rounded, share=torch.finfo(held).eps)


def test_only_the_types_that_a_cpu_takes_by_itself_are_hurried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    folder = tiny_folder(tmp_path, dtype=BF16)

    def is_hurried(dtype: str | Choice) -> bool:
        model = load_location(resolve(folder), template=None, dtype=dtype, device="cpu")
        assert computes_in(model) == FP32
        return all(part.is_quick_for_few_rows for part in model.modules() if isinstance(part, HeldLinear))

    assert is_hurried("auto")
    assert is_hurried("bf16")
    assert not is_hurried(Choice(BF16, FP32))


@pytest.mark.parametrize("quant", [None, "int8", "int4"])
@pytest.mark.parametrize("family", ["ChatGLM-6B", "ChatGLM3", "GLM-4-0414"])
@torch.no_grad()
def test_a_hurried_model_rounds_the_steps_of_decoding_and_nothing_else(
    family: str, quant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    folder = FAMILIES[family](tmp_path, dtype=BF16)
    hurried = load_location(resolve(folder), template=None, dtype="auto", device="cpu", quant=quant).eval()
    exact = open_in(folder, BF16, FP32, quant)
    assert any(part.is_quick_for_few_rows for part in hurried.modules() if isinstance(part, FrozenLinear))
    for length in (3, 12, 16):  # a prompt, a loss and the proof's probe are as short as a batch's step
        assert torch.equal(logits(hurried, length), logits(exact, length))

    def answer(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits after a prompt, and those of a step."""
        runner, prompt = build_runner(model), [5, 6, 7, 8]
        if hasattr(model.config, "mask_ids"):
            prompt += [model.config.mask_ids[1], model.config.bos_token_id]
        cache = KvCache([0])
        first, positions = runner.prefill(cache, [PrefillPrompt(0, prompt, 0)])
        return first, runner.step(cache, torch.tensor([[9]]), positions)

    (prompt, step), (exact_prompt, exact_step) = answer(hurried), answer(exact)
    assert torch.equal(prompt, exact_prompt)
    assert not torch.equal(step, exact_step)
    assert_close(step, exact_step, share=2e-2)
