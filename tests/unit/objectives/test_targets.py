"""Cross-entropies against distributions, with the loss and gradient of autograd on full logits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from closeness import ROUNDING, assert_close, distance
from glmtune.models.frozen_linear import HeldLinear
from glmtune.models.quant import QuantizedLinear
from glmtune.objectives import cross_entropy, sft
from glmtune.objectives.cross_entropy import frozen_cross_entropy, frozen_log_chances
from glmtune.objectives.sft import likeliest, summed_cross_entropy
from glmtune.objectives.targets import Targets, log_chances, with_rest

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SAME = {torch.float64: 1e-12, torch.float32: 1e-6} | {t: ROUNDING[t] for t in (torch.float16, torch.bfloat16)}
POSITIONS, HIDDEN, VOCABULARY = 23, 16, 211
HEADS = ["frozen", "held", "trained", "quantised"]


def made_head(kind: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    layer = nn.Linear(HIDDEN, VOCABULARY, bias=kind == "frozen").requires_grad_(False)
    if kind == "held":
        return HeldLinear(layer.to(torch.bfloat16))
    if kind == "quantised":
        return QuantizedLinear(layer, 8)
    return layer.to(dtype).requires_grad_(kind == "trained")


def dense_weight(layer: nn.Linear) -> Tensor:
    weight: Tensor = layer(torch.eye(HIDDEN)).T if isinstance(layer, QuantizedLinear) else layer.weight
    return weight.detach().double()


def drawn(dtype: torch.dtype, scale: float = 5.0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(POSITIONS, HIDDEN, generator=generator) * scale).to(dtype).requires_grad_()


def distributions(number: int, rest: float, dtype: torch.dtype, seed: int = 2) -> Targets:
    """Some mixed, some certain, some of weights that add up to 1.7; `rest`: the share of all other ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:number] for _ in range(POSITIONS)])
    weights = torch.rand(POSITIONS, number, generator=generator, dtype=torch.float64)
    weights = torch.cat(
        ((1 - rest) * weights / weights.sum(1, keepdim=True), weights.new_full((POSITIONS, 1), rest)), 1
    )
    weights[::3] = functional.one_hot(torch.tensor(0), number + 1).double()
    weights[1::3] *= 1.7
    return Targets(ids, weights.to(dtype))


def straightforward(logits: Tensor, targets: Targets) -> Tensor:
    """The loss of full logits (L, V), in their type."""
    log_probs = logits.log_softmax(1)
    listed = log_probs.gather(1, targets.ids)
    rest = log_probs.scatter(1, targets.ids, -torch.inf).logsumexp(1, keepdim=True)
    return -(targets.weights.to(logits.dtype) * torch.cat((listed, rest), 1)).sum(1)


@pytest.fixture(params=[1, 2**20])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 rows and of all; chunks of 4 positions and of all."""
    monkeypatch.setattr(cross_entropy, "BLOCK_NUMBERS", request.param)
    monkeypatch.setattr(sft, "CHUNK_LOGITS", max(4 * VOCABULARY, request.param))


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("rest", [0.0, 0.3, 1 - 1e-6])
@pytest.mark.parametrize("number", [1, 20])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_distributions_give_the_loss_and_gradient_of_autograd(
    dtype: torch.dtype, kind: str, number: int, rest: float
) -> None:
    layer, hidden = made_head(kind, dtype), drawn(dtype)
    targets = distributions(number, rest, torch.promote_types(dtype, torch.float32))
    found = torch.empty(POSITIONS, number + 1, dtype=targets.weights.dtype)
    loss = summed_cross_entropy(hidden, targets, layer, by_token=found)
    trained = [p for p in layer.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss * 3, [hidden, *trained])
    leaf = hidden.detach().double().requires_grad_()
    weight = dense_weight(layer).requires_grad_()
    logits = leaf @ weight.T + (0 if layer.bias is None else layer.bias.double())
    losses = straightforward(logits, targets)
    expected = torch.autograd.grad(losses.sum() * 3, [leaf, *([weight] if trained else [])])
    share = SAME[torch.bfloat16 if kind == "quantised" and dtype != torch.float64 else dtype]
    assert_close(targets.loss(found).double(), losses, share=share)
    assert_close(loss.double(), losses.sum(), share=share)
    assert_close([gradient.double() for gradient in gradients], [*expected], share=share)
    with torch.no_grad():
        assert_close(summed_cross_entropy(hidden, targets, layer), loss, share=share)


@pytest.mark.usefixtures("sizes")
def test_a_certain_label_is_what_a_label_alone_is() -> None:
    layer, hidden = made_head("frozen", torch.float32), drawn(torch.float32)
    certain = distributions(20, 0.0, torch.float32)
    certain = Targets(certain.ids, torch.zeros_like(certain.weights))
    certain.weights[:, 0] = 1
    losses, gradient = frozen_cross_entropy(hidden, certain.ids[:, 0], layer, needs_gradient=True)
    found, by_distribution = frozen_log_chances(hidden, certain, layer, needs_gradient=True)
    assert gradient is not None and by_distribution is not None
    assert_close(-found[:, 0], losses, share=1e-6)
    assert_close(by_distribution, gradient, share=1e-6)


@pytest.mark.parametrize("far", [5.0, 20.0, 60.0])
def test_a_probability_near_one_keeps_what_is_left_beside_it(far: float) -> None:
    """Of 1 - p, with p rounded, nothing would be left at exp(-20), nor its gradient."""
    logits = torch.tensor([[far, 0.0, -1.0, 2.0]])
    exact = logits.double().log_softmax(1)
    assert float(log_chances(logits)[0, 0]) == pytest.approx(float(exact[0, 0]), rel=1e-6)
    targets = Targets(torch.zeros(1, 3, dtype=torch.long), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    due = exact.exp() - targets.weights
    due[0, 0] = -exact[0, 1:].exp().sum()
    assert_close(targets.gradient(log_chances(logits)).double(), due, share=1e-6)


@pytest.mark.parametrize("left", [0.9, 1e-3, 1e-9, 0.0])
def test_the_rest_of_recorded_probabilities_is_what_they_leave(left: float) -> None:
    chances = torch.tensor([[1 - 1e-4 - left, 1e-4]], dtype=torch.float64)
    found = with_rest(chances.log().float())[0].exp()
    assert found[2] == pytest.approx(left, abs=1e-6 * (1e-4 + left))
    assert float(found.sum()) == pytest.approx(1, abs=2e-7)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_likeliest_are_those_of_full_logits_and_the_label(dtype: torch.dtype, kind: str) -> None:
    layer, hidden = made_head(kind, dtype), drawn(dtype).detach()
    labels = torch.arange(POSITIONS) * 9
    with torch.no_grad():
        ids, log_probs = likeliest(hidden, labels, layer, 20)
        log_softmax = layer(hidden).double().log_softmax(1)
    assert torch.equal(ids[:, 0], labels)
    best = log_softmax.scatter(1, labels[:, None], -torch.inf).topk(19, dim=1).values
    assert distance(log_softmax.gather(1, ids[:, 1:]), best) <= SAME[dtype]
    assert all(len(set(row)) == 20 for row in ids.tolist())
    assert_close(log_probs.double(), log_softmax.gather(1, ids), share=SAME[dtype])


def test_no_position_has_no_likeliest_id() -> None:
    for kind in HEADS:
        none = torch.zeros(0, dtype=torch.long)
        ids, log_probs = likeliest(torch.zeros(0, HIDDEN), none, made_head(kind, torch.float32), 20)
        assert (ids.shape, log_probs.shape) == ((0, 20), (0, 20))
