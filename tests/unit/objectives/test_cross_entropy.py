"""The loss of a frozen output layer against autograd's, and what it costs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from closeness import ROUNDING, assert_close
from glmtune.models import frozen_linear
from glmtune.models.frozen_linear import HeldLinear
from glmtune.objectives import cross_entropy, sft
from glmtune.objectives.cross_entropy import frozen_cross_entropy, is_frozen_product
from glmtune.objectives.sft import summed_cross_entropy
from glmtune.training.allocations import TensorMeter

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


@pytest.fixture(params=[1, 2**11, 2**20])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 rows, of 128 and of all."""
    monkeypatch.setattr(cross_entropy, "BLOCK_NUMBERS", request.param)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_frozen_head_gives_the_loss_and_gradient_of_autograd(dtype: torch.dtype, bias: bool) -> None:
    layer, (hidden, targets) = head(dtype, bias=bias), drawn(dtype)
    loss = summed_cross_entropy(hidden, targets, layer)
    (gradient,) = torch.autograd.grad(loss * 3, hidden)
    leaf = hidden.detach().double().requires_grad_()
    expected = functional.cross_entropy(layer.double()(leaf), targets, reduction="sum")
    assert_close(loss.double(), expected, share=SAME[dtype])
    assert_close(gradient.double(), torch.autograd.grad(expected * 3, leaf), share=SAME[dtype])


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_that_is_all_but_certain_keeps_its_gradient(dtype: torch.dtype) -> None:
    """Of p - 1, with p rounded, nothing would be left."""
    layer, targets = head(dtype), torch.arange(9) * 23
    weight = layer.weight.double()
    hidden = (weight[targets] * 11 / weight[targets].square().sum(1, keepdim=True)).to(dtype)
    leaf = hidden.double().requires_grad_()
    expected = functional.cross_entropy(leaf @ weight.T, targets, reduction="sum")
    (due,) = torch.autograd.grad(expected, leaf)
    assert due.abs().max() < 0.1
    losses, gradient = frozen_cross_entropy(hidden, targets, layer, needs_gradient=True)
    assert gradient is not None
    assert_close(losses.double().sum(), expected, share=ROUNDING[dtype])
    assert_close(gradient.double(), due, share=ROUNDING[dtype])


@pytest.mark.parametrize("shift", [-500, 500])
def test_logits_far_apart_give_a_finite_loss(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "BLOCK_NUMBERS", 1)
    layer, targets = nn.Linear(1, 130, bias=False).requires_grad_(False), torch.tensor([100])
    layer.weight.zero_()[100] = shift
    losses, gradient = frozen_cross_entropy(torch.ones(1, 1), targets, layer, needs_gradient=True)
    assert gradient is not None
    assert float(losses) == pytest.approx(0 if shift > 0 else 500 + math.log(129))
    assert float(gradient) == pytest.approx(0 if shift > 0 else 500)


def test_no_learned_token_is_a_loss_of_zero() -> None:
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    loss = summed_cross_entropy(hidden, torch.zeros(0, dtype=torch.long), head())
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert (loss.item(), gradient.shape) == (0, (0, HIDDEN))


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_the_logits_are_never_in_memory_together(held: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "BLOCK_NUMBERS", 2**11)
    monkeypatch.setattr(frozen_linear, "_buffers", frozen_linear._Buffers())  # none that a test has grown
    layer = nn.Linear(HIDDEN, 2000, bias=False).to(held).requires_grad_(False)
    layer, hidden = HeldLinear(layer), torch.randn(400, HIDDEN).requires_grad_()
    with TensorMeter([layer.weight, hidden]) as meter:
        summed_cross_entropy(hidden, torch.arange(400), layer)
    logits = 400 * 64 * 4
    assert meter.peak < 3 * logits + 4 * hidden.nbytes < 400 * 2000 * 4 / 4


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


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_the_losses_of_the_tokens_are_kept(
    is_frozen: bool, needs_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "CHUNK_LOGITS", 1000)
    layer, targets = head(torch.float64).requires_grad_(not is_frozen), torch.arange(9) * 23
    hidden = torch.randn(9, layer.in_features, dtype=torch.float64).requires_grad_(needs_gradient)
    by_token = torch.empty(9, dtype=torch.float64)
    with torch.set_grad_enabled(needs_gradient):
        loss = summed_cross_entropy(hidden, targets, layer, by_token)
    expected = functional.cross_entropy(layer(hidden), targets, reduction="none").detach()
    assert_close(by_token, expected, share=1e-12)
    assert_close(loss.detach(), expected.sum(), share=1e-12)
