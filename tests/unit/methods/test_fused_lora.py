"""LoRA's fused function against PEFT's own layer, which is the oracle: same numbers, fewer kept tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from closeness import assert_close, distance
from glmtune.adapters.store import Card, load_adapter, save_trained
from glmtune.data.batches import collate
from glmtune.methods import apply_method, fused_lora
from glmtune.methods.fused_lora import FusedLinear
from glmtune.models import ChatGLM6BConfig, ChatGLM6BForConditionalGeneration
from glmtune.models.frozen_linear import HeldLinear
from glmtune.models.fused import NormSource, rms_norm
from glmtune.models.nf4 import quantise_as
from glmtune.objectives import SftObjective
from glmtune.objectives.sft import summed_cross_entropy
from glmtune.recipe import Lora
from models import VOCABULARY, random_rows, tiny_model

SAME = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Share of a tensor's largest magnitude by which gradients may differ."""
SIZES = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}  # NF4 needs rows of whole blocks of 64


def glm4(**settings: object) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY}  # fmt: skip
    config = AutoConfig.for_model("glm4", **sizes, pad_token_id=0, eos_token_id=2, **settings)
    return AutoModelForCausalLM.from_config(config)


def chatglm_6b() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "inner_hidden_size": 64, "num_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 93, "eos_token_id": 94, "mask_token_id": 95, "gmask_token_id": 96}
    return ChatGLM6BForConditionalGeneration(
        ChatGLM6BConfig(vocab_size=VOCABULARY, max_sequence_length=64, pad_token_id=3, **sizes, **ids)
    )


FAMILIES = {"ChatGLM3": tiny_model, "GLM-4-0414": glm4, "ChatGLM-6B": chatglm_6b}
TARGETS = {
    "ChatGLM3": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "GLM-4-0414": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"),
    "ChatGLM-6B": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"dropout": 0.0},
    "dropout": {"dropout": 0.3},
    "rslora": {"dropout": 0.0, "use_rslora": True},
}


def tuned(model: Any, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """With factors as after some training, so that both have gradients."""
    model = apply_method(model.to(dtype), Lora(r=4, **settings))
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            drawn = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.data = drawn.to(torch.promote_types(dtype, torch.float32))
    return model.train()


def plain(model: Any) -> Any:
    """The same model with PEFT's own layers."""
    twin = deepcopy(model)
    for part in twin.modules():
        if type(part) is FusedLinear:
            part.__class__ = Linear
    assert twin is not model
    return twin


def batch_of(model: Any) -> Any:
    rows = random_rows(3)
    if model.config.model_type == "chatglm" and hasattr(model.config, "inner_hidden_size"):
        for row in rows:
            row.input_ids[1], row.input_ids[2] = 96, 93  # gMASK and bos, which tell the positions
    return collate(rows, 0)


def loss_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Of one batch, at one seed for dropout."""
    model.zero_grad()
    torch.manual_seed(5)
    objective = SftObjective(model)
    with objective.passes():
        loss = objective(batch_of(model.get_base_model()))
        loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_training(ours: Any, theirs: Any, dtype: torch.dtype) -> None:
    (loss, gradients), (expected, oracle) = loss_and_gradients(ours), loss_and_gradients(theirs)
    assert_close(loss, expected, share=min(SAME[dtype], 1e-6))
    assert gradients.keys() == oracle.keys()
    assert gradients
    for name, gradient in gradients.items():
        assert_close(gradient, oracle[name], share=SAME[dtype])


@pytest.mark.parametrize("dtype", SAME)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_pefts(family: str, kind: str, dtype: torch.dtype) -> None:
    ours = tuned(FAMILIES[family](), dtype, target_modules=TARGETS[family], **KINDS[kind])
    assert_same_training(ours, plain(ours), dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quant", ["int8", "int4", "nf4"])
def test_on_a_quantised_base_too(quant: str, kind: str) -> None:
    base = tiny_model(**SIZES)
    quantise_as(base, quant)
    ours = tuned(base, torch.float32, target_modules=TARGETS["ChatGLM3"], **KINDS[kind])
    assert_same_training(ours, plain(ours), torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_on_weights_held_in_another_type_too(kind: str) -> None:
    ours = tuned(tiny_model(), target_modules=TARGETS["ChatGLM3"], **KINDS[kind])
    for part in ours.modules():
        if type(part) is FusedLinear:
            part.base_layer = HeldLinear(part.base_layer.to(torch.bfloat16))
    assert_same_training(ours, plain(ours), torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_of_adamw_end_at_the_same_weights(family: str) -> None:
    ours = tuned(FAMILIES[family](), target_modules=TARGETS[family], dropout=0.1)
    theirs = plain(ours)
    ends = []
    for model in (ours, theirs):
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-3)
        batch = batch_of(model.get_base_model())
        torch.manual_seed(3)
        for _ in range(20):
            optimizer.zero_grad()
            SftObjective(model)(batch).backward()
            optimizer.step()
        ends.append(weights)
    assert_close(*ends, share=1e-10)


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_with_gradient_checkpointing_the_gradients_are_the_same(is_reentrant: bool) -> None:
    ours = tuned(tiny_model(), target_modules=TARGETS["ChatGLM3"], dropout=0.3)
    loss, expected = loss_and_gradients(ours)
    ours.enable_input_require_grads()
    ours.gradient_checkpointing_enable({"use_reentrant": is_reentrant})
    again, gradients = loss_and_gradients(ours)
    assert_close(again, loss, share=1e-10)
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], share=1e-10)


def layer(dropout: float = 0.0, dtype: torch.dtype = torch.float32, **settings: object) -> Any:
    """One adapted layer, 24 inputs, 40 outputs, rank 4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40)).requires_grad_(False).to(dtype)
    config = peft.LoraConfig(r=4, target_modules=["0"], lora_dropout=dropout, **settings)
    wrapped = peft.get_peft_model(model, config)
    fused_lora.fuse_lora(wrapped)
    part = wrapped.base_model.model[0]
    assert type(part) is FusedLinear
    for factor in (part.lora_A["default"], part.lora_B["default"]):
        factor.weight.data = torch.randn(factor.weight.shape)
    return part


@contextmanager
def kept() -> Iterator[list[Tensor]]:
    """The tensors that autograd keeps for the backward pass."""
    found: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (found.append(x), x)[1], lambda x: x):
        yield found


def passes(part: Any, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """The output and the gradients of the input and of both factors, in float64."""
    part.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    out = part(x)
    out.backward(gradient.to(out.dtype))
    factors = (part.lora_A["default"].weight.grad, part.lora_B["default"].weight.grad)
    return [found.double() for found in (out.detach(), x.grad, *factors)]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_on_a_base_in_bf16_its_products_are_rounded_as_under_autocast_and_its_factors_stay_fp32(
    dropout: float,
) -> None:
    """PEFT without autocast computes its factors' products in fp32, which takes several times as long."""
    part = layer(dropout, torch.bfloat16)
    pefts, exact = deepcopy(part), deepcopy(part).double()
    pefts.__class__ = exact.__class__ = Linear
    x, gradient = torch.randn(64, 24).bfloat16(), torch.randn(64, 40).bfloat16()
    expected = passes(exact, x.double(), gradient.double())
    ours = passes(part, x, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = passes(pefts, x, gradient)
    factors = [p for name, p in part.named_parameters() if "lora_" in name]
    assert {p.dtype for p in factors} == {p.grad.dtype for p in factors} == {torch.float32}
    for found, autocast, true in zip(ours, theirs, expected, strict=True):
        # an input, x A^T and the result are rounded, each by half of eps at most
        assert_close(found, true, share=2 * torch.finfo(torch.bfloat16).eps)
        assert distance(found, true) <= 2 * distance(autocast, true)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_it_keeps_the_input_itself_the_low_rank_product_and_a_mask_alone(dropout: float) -> None:
    part, x = layer(dropout), torch.randn(2, 9, 24, requires_grad=True)
    with kept() as tensors:
        part(x)
    weights = {p.data_ptr() for p in part.parameters()}
    sizes = {t.data_ptr(): t.nbytes for t in tensors if t.data_ptr() not in weights | {x.data_ptr()}}
    assert any(t.data_ptr() == x.data_ptr() for t in tensors)
    assert sum(sizes.values()) == 18 * 4 * 4 + (18 * 24 if dropout else 0)


@pytest.mark.parametrize("rounds_first", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_of_a_norms_result_it_keeps_what_the_norm_keeps_and_its_gradients_to_the_bit(
    held: torch.dtype, dropout: float, rounds_first: bool
) -> None:
    part, scale = layer(dropout, held), torch.rand(24) + 0.5
    found = []
    for has_source in (True, False):
        part.zero_grad()
        x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(3)).to(held).requires_grad_()
        torch.manual_seed(5)
        with kept() as tensors:
            normed = rms_norm(x, scale, 1e-5, rounds_first=rounds_first)
            out = part(normed if has_source else normed.view_as(normed))
        assert any(t.data_ptr() == normed.data_ptr() for t in tensors) != has_source
        out.float().square().sum().backward()
        found.append([out, x.grad, *(p.grad for p in part.parameters() if p.grad is not None)])
    assert len(found[0]) == 4
    assert all(map(torch.equal, *found))


def test_a_norms_result_that_was_changed_since_is_kept_itself() -> None:
    normed = rms_norm(torch.randn(9, 24), torch.ones(24), 1e-5)
    assert NormSource.of(normed) is not None
    normed += 1
    assert NormSource.of(normed) is None


def test_three_targets_of_one_input_keep_it_once_also_under_autocast() -> None:
    parts, x = [layer() for _ in range(3)], torch.randn(9, 24, requires_grad=True)
    with kept() as tensors, torch.autocast("cpu", torch.bfloat16):
        sum(part(x) for part in parts)
    weights = {p.data_ptr() for part in parts for p in part.parameters()}
    sizes = {t.data_ptr(): t.nbytes for t in tensors if t.data_ptr() not in weights}
    assert sum(sizes.values()) == x.nbytes + 3 * 9 * 4 * 2


def test_an_input_without_gradient_costs_no_product_with_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []
    real = fused_lora.multiply_back
    monkeypatch.setattr(fused_lora, "multiply_back", lambda base, g: (calls.append(base), real(base, g))[1])
    part = layer()
    part(torch.randn(5, 24)).sum().backward()
    assert not calls
    assert part.lora_A["default"].weight.grad is not None
    part(torch.randn(5, 24, requires_grad=True)).sum().backward()
    assert calls == [part.base_layer]


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_under_autocast_it_computes_in_the_half_type_and_its_gradients_are_fp32(held: torch.dtype) -> None:
    part = layer(dtype=held)
    x, weight = torch.randn(7, 24, requires_grad=True), torch.randn(7, 40)
    with torch.autocast("cpu", torch.bfloat16):
        out = part(x)
        (out.float() * weight).sum().backward()
    assert out.dtype == torch.bfloat16
    gradients = [x.grad, *(part.get_submodule(n).default.weight.grad for n in ("lora_A", "lora_B"))]
    assert {g.dtype for g in gradients} == {torch.float32}
    exact = deepcopy(part).float()
    exact.__class__ = Linear
    exact.zero_grad()
    y = x.detach().requires_grad_()
    (exact(y) * weight).sum().backward()
    expected = [y.grad, *(exact.get_submodule(n).default.weight.grad for n in ("lora_A", "lora_B"))]
    for gradient, oracle in zip(gradients, expected, strict=True):
        assert_close(gradient, oracle, share=3e-2)  # bf16, `closeness.ROUNDING`


def _two_adapters(part: Any) -> None:
    config = peft.LoraConfig(r=2)
    part.update_layer("other", 2, 4, config=config)
    part.set_adapter(["default", "other"])


def _hook(part: Any) -> None:
    part.lora_A["default"].register_forward_hook(lambda _m, _args, out: out * 2)


STATES: dict[str, Any] = {
    "two active adapters": _two_adapters,
    "adapters disabled": lambda part: part.enable_adapters(False),
    "merged": lambda part: part.merge(),
    "a base that trains": lambda part: part.base_layer.bias.requires_grad_(),
    "a hook": _hook,
}


@pytest.mark.parametrize("state", STATES)
def test_what_it_does_not_know_goes_pefts_way(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = layer()
    STATES[state](part)
    monkeypatch.setattr(fused_lora, "_LoraProduct", None)  # not reached
    oracle = deepcopy(part)
    oracle.__class__ = Linear
    x = torch.randn(5, 24)
    torch.testing.assert_close(part(x), oracle(x), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_dora_and_biases_of_adapters_go_pefts_way(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = layer(**settings)
    monkeypatch.setattr(fused_lora, "_LoraProduct", None)  # not reached
    part(torch.randn(5, 24)).sum().backward()
    assert part.lora_A["default"].weight.grad is not None


def test_in_evaluation_mode_the_output_is_pefts_to_the_bit() -> None:
    part = layer().eval()
    oracle = deepcopy(part)
    oracle.__class__ = Linear
    x = torch.randn(5, 24)
    torch.testing.assert_close(part(x), oracle(x), rtol=0, atol=0)


def test_an_adapter_goes_through_pefts_files_and_trains_on(tmp_path: Path) -> None:
    ours = tuned(tiny_model(), torch.float32, target_modules=TARGETS["ChatGLM3"], dropout=0.0)
    save_trained(ours, tmp_path, Card(base="/base", template="chatglm3", method={}))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        logits = ours.eval()(ids).logits
        theirs = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path))
        assert_close(theirs.eval()(ids).logits, logits)
        again = load_adapter(tiny_model(), tmp_path, is_trainable=True)
        torch.testing.assert_close(again.eval()(ids).logits, logits, rtol=0, atol=0)
    assert sum(type(part) is FusedLinear for part in again.modules()) == 8
    assert_same_training(again.train(), plain(again), torch.float32)
    again.eval()
    with torch.no_grad(), again.disable_adapter():
        torch.testing.assert_close(again(ids).logits, tiny_model()(ids).logits, rtol=0, atol=0)
    with torch.no_grad():
        assert_close(again.merge_and_unload()(ids).logits, logits)


def test_the_head_as_target_trains_through_the_loss_in_chunks() -> None:
    torch.manual_seed(0)
    head = layer()
    hidden, targets = torch.randn(11, 24, requires_grad=True), torch.randint(40, (11,))
    summed_cross_entropy(hidden, targets, head).backward()
    ours = [hidden.grad, *(p.grad for p in head.parameters() if p.requires_grad)]
    inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    head.__class__ = Linear
    loss = nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    assert_close(ours, list(torch.autograd.grad(loss, inputs)), share=1e-5)
