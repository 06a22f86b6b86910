"""A model whose adapter is switched off is its base, to the bit, and afterwards as before."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from glmtune.adapters.off import without_adapter
from glmtune.errors import ConfigError
from glmtune.methods import apply_method
from models import prune, tiny_model, with_lora, with_prefix
from tuned import METHODS, settings_of

IDS = torch.arange(5, 25).view(2, 10)


def logits_of(model: Any) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


def moved(name: str, base: Any) -> Any:
    """The base with an adapter whose weights have moved, with dropout."""
    tuned = apply_method(base, settings_of({**METHODS[name], "dropout": 0.5}))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    if name == "pruned":
        prune(tuned)
    return tuned


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_without_its_adapter_a_model_is_its_base(name: str, dtype: torch.dtype, is_training: bool) -> None:
    base = tiny_model().to(dtype).train(is_training)
    expected = logits_of(base)
    tuned = moved(name, base).train(is_training)
    flags = {key: p.requires_grad for key, p in tuned.named_parameters()}
    before = logits_of(tuned)
    with without_adapter(tuned):
        assert torch.equal(logits_of(tuned), expected)
    assert torch.equal(logits_of(tuned), before)
    assert not torch.equal(before, expected)
    assert {key: p.requires_grad for key, p in tuned.named_parameters()} == flags
    assert {part.training for part in tuned.modules()} == {is_training}


@pytest.mark.parametrize("name", ["lora", "dora", "adalora", "projected"])
def test_gradients_of_a_step_are_those_without_a_look_at_the_base(name: str) -> None:
    plain = moved(name, tiny_model()).train()
    looking = deepcopy(plain)
    for model in (plain, looking):
        torch.manual_seed(4)
        model(input_ids=IDS).logits.square().sum().backward()
        if model is looking:
            with without_adapter(model):
                logits_of(model)
        torch.manual_seed(5)
        model(input_ids=IDS).logits.square().sum().backward()
    ours, theirs = ([p.grad for p in model.parameters() if p.requires_grad] for model in (plain, looking))
    assert ours
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_the_base_keeps_a_prefix_of_its_own_under_an_adapter_of_layers() -> None:
    base = with_prefix(tiny_model())
    expected = logits_of(base)
    tuned = moved("lora", base).eval()
    with without_adapter(tuned):
        assert torch.equal(logits_of(tuned), expected)


def test_an_adapter_for_answers_does_not_become_trainable() -> None:
    model = with_lora(tiny_model()).requires_grad_(False)
    with without_adapter(model):
        pass
    assert not any(p.requires_grad for p in model.parameters())


def test_a_switched_off_adapter_stays_off() -> None:
    model = with_lora(tiny_model())
    with without_adapter(model):
        expected = logits_of(model)
        with without_adapter(model):
            pass
        assert torch.equal(logits_of(model), expected)


@pytest.mark.parametrize(
    ("more", "found"), [({"modules_to_save": ["output_layer"]}, "modules_to_save"), ({"bias": "all"}, "bias")]
)
def test_an_adapter_that_changes_the_base_is_refused(more: Any, found: str) -> None:
    tuned = get_peft_model(tiny_model(), LoraConfig(target_modules=["query_key_value"], **more))
    with pytest.raises(ConfigError, match=found), without_adapter(tuned):
        pass


def test_a_model_without_an_adapter_is_refused() -> None:
    merged = with_lora(tiny_model())
    for part in merged.modules():
        if hasattr(part, "lora_A"):
            part.merge()
    for model, words in ((tiny_model(), "no adapter"), (merged, "merged")):
        with pytest.raises(ConfigError, match=words), without_adapter(model):
            pass
