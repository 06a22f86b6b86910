"""Frozen weights in half precision, computed in fp32, are the same model as with all of them in fp32."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glmtune.data.batches import Batch, collate
from glmtune.load import load_location, tokenizer_of
from glmtune.locations import resolve
from glmtune.methods import apply_method, begin_pruning
from glmtune.models.dtype import Choice
from glmtune.objectives import SftObjective
from glmtune.recipe import Data, Recipe, load_recipe
from glmtune.training.loop import fit
from glmtune.training.optim import build_optimizer, build_schedule
from glmtune.training.processes import Processes
from glmtune.workflows.rows import training_rows
from models import HF_FAMILIES, tiny_folder, tiny_hf_folder, tiny_v1_folder

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
STEPS = 20
LOSS, GRADIENT, LOSSES = 1e-6, 1e-5, 1e-5
"""Allowed differences: of a loss, of a gradient by its tensor's largest, of the losses of all steps."""
FAMILIES: dict[str, Callable[..., Path]] = {
    "ChatGLM-6B": partial(tiny_v1_folder, lively=(12, 12)),
    "ChatGLM2": partial(tiny_folder, template="chatglm2"),
    "ChatGLM3": partial(tiny_folder, template="chatglm3"),
    "GLM-4": partial(tiny_folder, template="glm4"),
    **{family: partial(tiny_hf_folder, family=family) for family in HF_FAMILIES},
}
LORA = {"name": "lora", "dropout": 0}
METHODS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "rslora": {**LORA, "use_rslora": True},
    "dora": {**LORA, "use_dora": True},
    "adalora": {"name": "adalora", "dropout": 0, "init_r": 6, "target_r": 4},
    "ptuning": {"name": "ptuning", "dropout": 0, "num_prefix_tokens": 8},
    "projection": {"name": "ptuning", "dropout": 0, "num_prefix_tokens": 8, "projection": True},
    "last layer": {"name": "freeze", "num_layers": 1},
    "all of a kind": {"name": "freeze", "patterns": ["*embed*", "*bias", "*norm*"]},
}
EXPERTS = {"name": "freeze", "patterns": ["*experts*"]}
CASES = [
    *((family, "lora", BF16) for family in FAMILIES),
    ("ChatGLM-6B", "lora", FP16),
    ("ChatGLM3", "lora", FP16),
    *(("ChatGLM3", method, BF16) for method in METHODS if method != "lora"),
    ("ChatGLM-6B", "all of a kind", FP16),
    ("GLM-4.5", "last layer", BF16),
]


def open_in(folder: Path, held: torch.dtype, computing: torch.dtype) -> Any:
    return load_location(resolve(folder), template=None, dtype=Choice(held, computing), device="cpu")


def encode_rows(folder: Path, tmp_path: Path) -> Batch:
    texts = [
        ("你好", "你好，请问图书馆怎么走？"),
        ("How much?", "It is white and soft."),
        ("谢谢", "不客气。"),
    ]
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": p, "response": r}, ensure_ascii=False) for p, r in texts]
    file.write_text("\n".join(lines), encoding="utf-8")
    rows = training_rows(tokenizer_of(resolve(folder), template=None), Data(train=file, max_tokens=64))
    return collate(rows.train.rows, 0)


def tuned(folder: Path, held: torch.dtype, recipe: Recipe) -> Any:
    model = open_in(folder, held, FP32)
    torch.manual_seed(0)
    return apply_method(model, recipe.method).train()


def learn(model: nn.Module, recipe: Recipe, batch: Batch) -> list[float]:
    """The losses of the steps."""
    processes, objective = Processes(), SftObjective(model)
    optimizer = build_optimizer(model, recipe.train)
    schedule = build_schedule(optimizer, recipe.train, STEPS)
    part = begin_pruning(model, recipe.method, STEPS)
    steps = [(step, [batch]) for step in range(1, STEPS + 1)]
    prepared = processes.prepare(optimizer)
    return [log.loss for log in fit(objective, objective, steps, prepared, schedule, processes, part=part)]


@pytest.mark.parametrize(("family", "method", "held"), CASES)
def test_cast_on_use_is_fp32_weights(family: str, method: str, held: torch.dtype, tmp_path: Path) -> None:
    folder = FAMILIES[family](tmp_path / "model", dtype=held)
    batch = encode_rows(folder, tmp_path)
    recipe = load_recipe(
        {"model": str(folder), "method": METHODS[method], "train": {"lr": 1e-3, "max_grad_norm": 1.0}}
    )
    narrow, wide = (tuned(folder, kind, recipe) for kind in (held, FP32))
    assert {p.dtype for p in narrow.parameters()} == {held, FP32}
    assert {p.dtype for p in wide.parameters()} == {FP32}
    with torch.no_grad():  # PEFT draws factors in the base's type and casts them afterwards
        for mine, other in zip(narrow.parameters(), wide.parameters(), strict=True):
            other.copy_(mine)
    losses = []
    for model in (narrow, wide):
        loss = SftObjective(model).loss(batch)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=LOSS)
    expected = {name: p.grad for name, p in wide.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in narrow.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            limit = GRADIENT * max(gradient.abs().max(), 1e-12)
            assert (found[name] - gradient).abs().max() <= limit, name
    for model in (narrow, wide):
        model.zero_grad(set_to_none=True)
    assert learn(narrow, recipe, batch) == pytest.approx(learn(wide, recipe, batch), rel=LOSSES)
