"""The loss of a frozen output layer against autograd's, and what it costs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from closeness import ROUNDING, assert_close
from glmtune.models import fused
from glmtune.models.frozen_linear import HeldLinear
from glmtune.objectives import sft
from glmtune.objectives.cross_entropy import is_frozen_product, turn_into_gradient
from glmtune.objectives.sft import summed_cross_entropy

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SAME = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: ROUNDING[torch.bfloat16]}
POSITIONS, HIDDEN, VOCABULARY = 23, 16, 211


def head(dtype: torch.dtype = torch.float32, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(HIDDEN, VOCABULARY, bias=bias).requires_grad_(False).to(dtype)


def drawn(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(POSITIONS, HIDDEN, generator=generator).to(dtype) * 5
    return hidden.requires_grad_(), torch.randint(VOCABULARY, (POSITIONS,), generator=generator)


@pytest.mark.parametrize("numbers_at_once", [1, 5 * VOCABULARY, 2**18])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_become_the_gradient_of_their_cross_entropy(
    dtype: torch.dtype, numbers_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_NUMBERS_AT_ONCE", numbers_at_once)
    logits, targets = (
        torch.randn(POSITIONS, VOCABULARY, dtype=torch.float64).mul(9).to(dtype),
        drawn(dtype)[1],
    )
    leaf = logits.double().requires_grad_()
    expected = functional.cross_entropy(leaf, targets, reduction="sum")
    (gradient,) = torch.autograd.grad(expected, leaf)
    loss = turn_into_gradient(logits, targets, scale=1024)
    assert_close(loss.double(), expected, share=SAME[loss.dtype])
    assert_close(logits.double() / 1024, gradient, share=SAME[dtype])


def test_logits_far_apart_give_a_finite_loss() -> None:
    logits = torch.tensor([[500.0, -500.0, 0.0]])
    assert turn_into_gradient(logits, torch.tensor([1]), scale=1) == 1000
    assert logits.tolist() == [[1, -1, 0]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_frozen_head_gives_the_loss_and_gradient_of_autograd(
    dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "CHUNK_LOGITS", 7 * VOCABULARY)
    layer, (hidden, targets) = head(dtype, bias=bias), drawn(dtype)
    loss = summed_cross_entropy(hidden, targets, layer)
    (gradient,) = torch.autograd.grad(loss * 3, hidden)
    monkeypatch.setattr(sft, "is_frozen_product", lambda _: False)
    expected = summed_cross_entropy(hidden, targets, layer)
    assert_close(loss, expected, share=SAME[loss.dtype])
    assert_close(gradient, torch.autograd.grad(expected * 3, hidden), share=SAME[dtype])


def test_in_float64_the_loss_is_float64_too() -> None:
    layer, (hidden, targets) = head(torch.float64), drawn(torch.float64)
    expected = functional.cross_entropy(layer(hidden), targets, reduction="sum")
    assert_close(summed_cross_entropy(hidden, targets, layer), expected, share=1e-14)
    with torch.no_grad():
        assert_close(summed_cross_entropy(hidden, targets, layer), expected, share=1e-14)


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_under_autocast_the_head_computes_in_its_type(held: torch.dtype) -> None:
    layer, (hidden, targets) = head(held), drawn(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_cross_entropy(hidden, targets, layer)
        (gradient,) = torch.autograd.grad(loss, hidden)
    assert (loss.dtype, gradient.dtype) == (torch.float32, torch.float32)
    exact = functional.cross_entropy(layer.float()(hidden), targets, reduction="sum")
    assert_close(loss, exact, share=ROUNDING[torch.bfloat16])
    assert_close(gradient, torch.autograd.grad(exact, hidden), share=ROUNDING[torch.bfloat16])


def _train(layer: nn.Linear) -> Any:
    return layer.requires_grad_()


def _hook(layer: nn.Linear) -> Any:
    layer.register_forward_hook(lambda _m, _args, out: out * 2)
    return layer


@pytest.mark.parametrize("change", [_train, _hook, nn.Sequential])
def test_a_head_that_trains_or_does_more_goes_through_autograd(change: Any) -> None:
    assert is_frozen_product(head())
    assert is_frozen_product(HeldLinear(head(torch.bfloat16)))
    assert not is_frozen_product(change(head()))
