"""AdamW in 8 bits beside AdamW, and what of it is kept."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from glmtune.errors import MissingDependencyError
from glmtune.recipe import Train
from glmtune.training.optim import build_optimizer, build_schedule


class Model(nn.Module):
    """An embedding, a matrix and a bias to be trained, and a matrix that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(80, 64)
        self.dense = nn.Linear(64, 96)
        self.fixed = nn.Linear(96, 96).requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fixed(self.dense(self.words(ids)).tanh())


def start(optimizer: str, **settings: Any) -> tuple[Model, Optimizer]:
    torch.manual_seed(0)
    model = Model()
    return model, build_optimizer(model, Train(optimizer=optimizer, lr=1e-2, **settings))  # type: ignore[arg-type]


def steps(model: Model, optimizer: Optimizer, count: int, seed: int = 1) -> list[float]:
    draw = torch.Generator().manual_seed(seed)
    device = model.dense.weight.device
    ids = torch.randint(80, (32,), generator=draw).to(device)
    wanted = 0.3 * torch.randn(32, 96, generator=draw).to(device)
    losses = []
    for _ in range(count):
        loss = functional.mse_loss(model(ids), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_it_learns_what_adamw_learns() -> None:
    ours, theirs = (steps(*start(name), 60) for name in ("adamw_8bit", "adamw"))
    assert ours[0] == theirs[0]
    assert theirs[-1] < 0.2 * theirs[0]
    assert ours[-1] == pytest.approx(theirs[-1], rel=0.05)


def test_only_the_means_of_large_matrices_that_are_no_embeddings_are_codes() -> None:
    model, optimizer = start("adamw_8bit")
    steps(model, optimizer, 1)
    held = {
        name: optimizer.state[p]["state1"].dtype
        for name, p in model.named_parameters()
        if p in optimizer.state
    }
    assert held == {
        "words.weight": torch.float32, "dense.weight": torch.uint8, "dense.bias": torch.float32
    }  # fmt: skip


def test_the_means_of_a_matrix_take_a_quarter_of_the_bytes() -> None:
    sizes = []
    for name in ("adamw", "adamw_8bit"):
        model, optimizer = start(name)
        steps(model, optimizer, 1)
        state = optimizer.state[model.dense.weight]
        shared = ("qmap1", "qmap2")  # one table for all weights
        sizes.append(sum(x.nbytes for key, x in state.items() if isinstance(x, Tensor) and key not in shared))
    assert sizes[1] < 0.26 * sizes[0]


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_a_state_that_was_saved_goes_on_bit_by_bit(name: str, tmp_path: Path) -> None:
    model, optimizer = start(name, weight_decay=0.1)
    steps(model, optimizer, 5)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    expected = steps(model, optimizer, 5, seed=2)
    again, other = start(name, weight_decay=0.1)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(weights)
    other.load_state_dict(state)
    assert steps(again, other, 5, seed=2) == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_the_rate_follows_the_schedule_and_decay_spares_biases(name: str) -> None:
    model, optimizer = start(name, weight_decay=0.5)
    schedule = build_schedule(optimizer, Train(lr=1e-2, schedule="linear"), 2)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {model.words.weight: 0.5, model.dense.weight: 0.5, model.dense.bias: 0.0}
    steps(model, optimizer, 1)
    schedule.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.5e-2}


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match="needs bitsandbytes") as caught:
        start("adamw_8bit")
    assert caught.value.hint == "pip install 'glmtune[bitsandbytes]'"


@pytest.mark.gpu
def test_a_gpu_learns_the_same() -> None:
    model, optimizer = start("adamw_8bit")
    expected = steps(model, optimizer, 20)
    torch.manual_seed(0)
    moved = Model().cuda()
    there = build_optimizer(moved, Train(optimizer="adamw_8bit", lr=1e-2))
    assert steps(moved, there, 20)[-1] == pytest.approx(expected[-1], rel=0.05)
