"""The benchmark of training compares like with like: the same losses; memory and work are counted."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import models, operations, train, train_gpu, train_models, trainers

from closeness import assert_close
from glmtune.models import triton_products

STEPS = 4
EXPANDED = "ours, int4, 4 x 140 tokens, expanded"
FP32 = torch.float32


class Pace:
    """Takes all steps without being told."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def hold(self) -> None:
        pass

    def wait(self, **facts: object) -> None:
        pass

    def step(self, loss: float) -> None:
        self.losses.append(loss)


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> argparse.Namespace:
    """Without what lies in ../shared, and with a small vocabulary."""
    for module in (models, train_models):
        monkeypatch.setattr(module, "VOCABULARY", 4096)
    monkeypatch.setattr(train_models, "PIECES", 2000)
    monkeypatch.setattr(train_models, "SHARED", tmp_path / "nothing")
    return argparse.Namespace(shape="test", work=tmp_path, rounds=STEPS - 1, threads=1)


def make_lively(folder: Path) -> None:
    """Weights so large that the rows, their order and the tokens before a token matter."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)


def losses_of(run: Any, side: train.Training) -> torch.Tensor:
    pace = Pace()
    run(side.spec, pace)
    return torch.tensor(pace.losses[:STEPS])


CASES: list[Any] = [
    pytest.param(train_models.make_chatglm3, train.LORA, train.QKV, trainers.run_peer, 1e-3, id="lora"),
    pytest.param(
        train_models.make_glm4, train.LORA, [*train.QKV, "o_proj"], trainers.run_peer, 1e-5, id="glm4"
    ),
    pytest.param(
        train_models.make_chatglm3,
        {"name": "ptuning", "num_prefix_tokens": 5, "dropout": 0.0},
        [],
        trainers.run_prefixed,
        1e-5,
        id="ptuning",
    ),
]


@pytest.mark.parametrize(("make", "method", "targets", "run", "later"), CASES)
def test_the_peer_has_our_loss_at_every_step(
    options: argparse.Namespace, make: Any, method: Any, targets: list[str], run: Any, later: float
) -> None:
    """In fp32. The peer's q, k and v have a factor A each, ours share one: they part in the third step."""
    pair = make(options.work, "test")
    for folder in {pair.ours, pair.peer}:
        make_lively(folder)
    stage = train.Stage("equal", options, batch=4, steps=1)
    ours = stage.ours("ours", {**stage.recipe("ours", pair, method), "dtype": "fp32"})
    first = options.work / "first.pt"
    train_models.write_first_weights(first, pair, "test", method, FP32)
    peer = stage.peer("peer", pair, "float32", lora=train.lora_on(targets), initial=str(first))
    own, theirs = losses_of(trainers.run_ours, ours), losses_of(run, peer)
    assert len(set(own.tolist())) == STEPS
    assert_close(theirs[:2], own[:2], share=1e-5)
    assert_close(theirs, own, share=later)


def test_padding_is_masked_and_has_no_label() -> None:
    rows = [{name: torch.arange(1, n + 1) for name in ("input_ids", "labels")} for n in (2, 3)]
    padded = trainers.pad(rows, 4)
    assert padded["input_ids"].tolist() == [[1, 2, 0, 0], [1, 2, 3, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert padded["labels"].tolist() == [[1, 2, -100, -100], [1, 2, 3, -100]]
    assert trainers.pad(rows, None)["input_ids"].shape == (2, 3)


def test_useful_operations_are_counted_by_the_formula() -> None:
    shape = {
        "num_layers": 2, "hidden_size": 6, "ffn_hidden_size": 5, "num_attention_heads": 3, "kv_channels": 2
    }  # fmt: skip
    widths = operations.Widths.of(shape, vocabulary=7)
    layer = 6 * (6 + 2 * 2 * 2) + 6 * 6 + 6 * 10 + 5 * 6
    attention = 3 * 2 * 6 * (3**2 + 4**2)  # thrice the forward pass: two products of half a square, 2 each
    work = operations.Work([3, 4], learned=5)
    assert widths.useful(work) == 4 * 2 * layer * 7 + 4 * 42 * 5 + 2 * attention


def test_a_product_alone_allows_so_many_tokens() -> None:
    widths = operations.Widths.of(models.SHAPES["test"], vocabulary=11)
    work = operations.Work([8, 8], learned=4)
    peak = operations.MatrixPeak(widths, work, FP32)
    tokens_per_s = peak.run()
    assert tokens_per_s == pytest.approx(work.tokens * peak.gflops * 1e9 / widths.useful(work))


def test_the_memory_of_a_step_is_its_highest() -> None:
    size = 64 * trainers.MIB
    before = trainers.resting_bytes()
    peak = trainers.watch_memory()
    torch.ones(size // 4).sum()
    torch.ones(size // 8).sum()
    assert size * 0.9 < peak() - before < size * 2


def test_the_peer_on_a_gpu_takes_our_rows_in_our_order() -> None:
    lengths = [(n, 2 * n) for n in range(1, 9)]
    own = train_gpu.steps_of(train_gpu.Side(tokens=40), lengths, 4)
    theirs = train_gpu.steps_of(train_gpu.Side("peer", tokens=40, batch=2), lengths, 4)
    assert all(sum(map(sum, rows)) <= 40 for rows in own)
    flat = [row for rows in own for row in rows]
    assert [row for rows in theirs for row in rows] == flat[: 2 * len(theirs)]
    assert {len(rows) for rows in theirs} == {2}


def test_a_side_with_kernels_ends_with_the_reason_where_they_do_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MOST_ROWS", "FEW_ROWS"):
        monkeypatch.setattr(triton_products, name, getattr(triton_products, name))
    monkeypatch.setattr(train_gpu, "device", lambda: "cpu")
    with pytest.raises(SystemExit, match="Triton's kernels do not run here"):
        train_gpu.limit_kernels(4096)
    train_gpu.limit_kernels(0)
    assert triton_products.MOST_ROWS == triton_products.FEW_ROWS == 0


def test_sides_with_and_without_kernels_lie_on_both_sides_of_the_limit() -> None:
    lengths = [(44, 76)] * 100
    sizes = {
        (side.quant, bool(side.kernel_rows), rows > triton_products.MOST_ROWS)
        for side in train_gpu.KERNELS.values()
        for rows in [sum(map(sum, train_gpu.steps_of(side, lengths, 1)[0]))]
        if not side.kernel_rows or rows <= side.kernel_rows
    }
    assert len(sizes) == len(train_gpu.KERNELS)


@pytest.mark.slow
def test_the_sides_on_a_gpu_run_on_a_cpu_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "SHARED", tmp_path / "nothing")
    for name in ("MOST_ROWS", "FEW_ROWS"):
        monkeypatch.setattr(triton_products, name, getattr(triton_products, name))
    train_gpu.make_folder(tmp_path / "tiny", "tiny")
    for name in ("ours", "peer, sdpa, 16 rows", "matrix peak bf16", "ours, nf4, 2k tokens", EXPANDED):
        found = train_gpu.measure_side(tmp_path / "tiny", "tiny", name, steps=3)
        assert len(found["tokens_per_s"]) == 1
        assert found["tokens_per_s"][0] > 0


@pytest.mark.slow
@pytest.mark.shared
def test_the_sides_of_a_case_take_turns_and_have_speed_memory_and_loss(tmp_path: Path) -> None:
    words = [
        "--case",
        "lora 4",
        "--shape",
        "test",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--work",
        str(tmp_path),
    ]
    speed, memory = train.main(words)
    assert speed["unit"] == "tokens/s"
    assert {"ours", "peer fp32", "peer fp32, padded to 256", "matrix peak fp32"} <= speed["sides"].keys()
    assert memory["sides"].keys() <= speed["sides"].keys()
    losses = [value for name, value in speed["checks"].items() if name.startswith("last loss")]
    assert max(losses) - min(losses) < 0.005 * min(losses)
