"""The matrix: every method x base precision x checkpointing on every family learns, changes only what it
should, and comes back from its files as it was.

The whole matrix is slow. `make test` has each family with each method, each method on each kind of base and
each family on each kind of base, once or more.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune.adapters.store import Card, restore_trained, save_trained
from glmtune.data.batches import Batch, collate
from glmtune.load import load_location, tokenizer_of
from glmtune.locations import resolve
from glmtune.methods import apply_method, begin_pruning
from glmtune.objectives import SftObjective
from glmtune.recipe import Data, Recipe, load_recipe
from glmtune.training.loop import fit, mean_loss
from glmtune.training.optim import build_optimizer, build_schedule
from glmtune.training.processes import Processes
from glmtune.workflows.rows import training_rows
from models import HF_FAMILIES, tiny_folder, tiny_hf_folder, tiny_v1_folder

STEPS = 8
SIZES = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}  # NF4 needs rows of whole blocks of 64
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "ChatGLM-6B": lambda folder: tiny_v1_folder(
        folder, lively=(12, 12), hidden_size=64, inner_hidden_size=128
    ),
    "ChatGLM2": lambda folder: tiny_folder(folder, "chatglm2", **SIZES),
    "ChatGLM3": lambda folder: tiny_folder(folder, "chatglm3", **SIZES),
    "GLM-4": lambda folder: tiny_folder(folder, "glm4", **SIZES),
}
FAMILIES |= {family: partial(tiny_hf_folder, family=family) for family in HF_FAMILIES}
METHODS: dict[str, tuple[dict[str, Any], float, str]] = {
    "full": ({"name": "full"}, 2e-3, ""),
    "freeze": ({"name": "freeze", "num_layers": 1}, 5e-3, "layers.1."),
    "lora": ({"name": "lora", "dropout": 0}, 1e-2, ".lora_"),
    "rslora": ({"name": "lora", "dropout": 0, "r": 4, "use_rslora": True}, 1e-2, ".lora_"),
    "dora": ({"name": "lora", "dropout": 0, "use_dora": True}, 1e-2, ".lora_"),
    "adalora": ({"name": "adalora", "dropout": 0, "init_r": 6, "target_r": 4}, 5e-2, ".lora_"),
    "ptuning": ({"name": "ptuning", "dropout": 0, "num_prefix_tokens": 8}, 5e-2, "prefix_encoder."),
    "projection": (
        {"name": "ptuning", "dropout": 0, "num_prefix_tokens": 8, "projection": True},
        5e-3,
        "prefix_encoder.",
    ),
}
"""Each method's settings, a rate that shows within a few steps, and what the names of its weights hold."""
QUANTS = ("int8", "int4", "nf4")
BASES = {"fp32": ("fp32", None), "bf16": ("bf16", None), **{quant: ("fp32", quant) for quant in QUANTS}}
HALF_BASES = {f"{quant} on bf16": ("bf16", quant) for quant in QUANTS}
"""Tried on one family: what is held so is the same code in all."""
ROWS = [
    ("你好", "你好，请问图书馆怎么走？"),
    ("你好，请问图书馆怎么走？", "一直往前走，过了桥就到了。"),
    ("How much does it cost?", "This shirt is white, soft and good for summer."),
    ("谢谢你的帮助！", "不客气，祝你愉快。"),
]


Case = tuple[str, str, str]


def cases() -> Iterator[Case]:
    for family in FAMILIES:
        for method in METHODS:
            for base, (_, quant) in BASES.items():
                is_own = family not in HF_FAMILIES
                is_there = is_own or (quant is None and method not in ("ptuning", "projection"))
                if is_there and not (quant and method in ("full", "freeze")):
                    yield family, method, base
    for method in METHODS.keys() - {"full", "freeze"}:
        yield from (("ChatGLM3", method, base) for base in HALF_BASES)


def pairs(case: Case) -> set[tuple[str, ...]]:
    """The pairs that a case is an example of; of the half bases, each method and each of them once."""
    family, method, base = case
    if base in HALF_BASES:
        return {(method, "on bf16"), (base,)}
    return {(family, method), (method, base), (family, base)}


def marked_cases() -> list[Any]:
    """All cases; those that show no pair that another shows are slow."""
    everything = sorted(cases())
    left = set().union(*map(pairs, everything))
    fast = set()
    while left:
        case = max(everything, key=lambda case: len(pairs(case) & left))
        fast.add(case)
        left -= pairs(case)
    return [pytest.param(*case, marks=() if case in fast else pytest.mark.slow) for case in everything]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make(tmp_path_factory.mktemp(family) / "model") for family, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"prompt": p, "response": r}, ensure_ascii=False) for p, r in (*ROWS, ROWS[0])]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(("family", "method", "base"), marked_cases())
def test_a_method_learns_changes_its_own_weights_alone_and_comes_back(
    family: str, method: str, base: str, folders: dict[str, Path], rows_file: Path, tmp_path: Path
) -> None:
    place, (dtype, quant) = resolve(folders[family]), (BASES | HALF_BASES)[base]
    settings, rate, own = METHODS[method]
    recipe = load_recipe(
        {"model": "m", "method": settings, "train": {"lr": rate, "steps": STEPS, "schedule": "constant"}}
    )
    processes = Processes(precision="bf16" if dtype == "bf16" else "fp32")
    tokenizer = tokenizer_of(place, template=None)
    batch = encode_rows(tokenizer, rows_file)
    is_rough = dtype == "bf16"  # the order of a sum shows, and grows from step to step

    courses = []
    for checkpointing in (False, True):
        base_model = load_location(place, template=None, dtype=dtype, device="cpu", quant=quant)
        tuned, before = apply_seeded(base_model, recipe)
        if checkpointing:
            tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        first = mean_loss(SftObjective(tuned), [batch], processes)
        optimizer = processes.prepare(build_optimizer(tuned, recipe.train))
        losses = train(tuned, recipe, batch, processes, optimizer, range(1, STEPS + 1))
        last = mean_loss(SftObjective(tuned), [batch], processes)
        assert losses[0] == pytest.approx(first, rel=2e-2 if is_rough else 1e-4)
        assert last < first - 0.05
        assert_only_own_weights_changed(tuned, before, own)
        courses.append(losses)
    assert courses[0] == pytest.approx(courses[1], rel=5e-2 if is_rough else 1e-3)

    card = Card(base=str(place.base), template=tokenizer.template, method=settings, quant=quant)
    save_trained(tuned, tmp_path / "trained", card)
    if method == "full":
        copy_small_files(place.base, tmp_path / "trained")
    if method != "adalora":  # which is resumed from the pruning's state: test_low_rank_runs.py
        anew = load_location(place, template=None, dtype=dtype, device="cpu", quant=quant)
        restored, _ = apply_seeded(anew, recipe)
        restore_trained(restored, tmp_path / "trained")
        assert mean_loss(SftObjective(restored), [batch], processes) == last
        if not is_rough:
            restored.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            assert_goes_on_alike(tuned, restored, optimizer, recipe, batch, processes)
    again = load_location(resolve(tmp_path / "trained"), template=None, dtype=dtype, device="cpu")
    assert mean_loss(SftObjective(again), [batch], processes) == pytest.approx(
        last, rel=2e-2 if is_rough else 1e-5
    )


def apply_seeded(model: Any, recipe: Recipe) -> tuple[Any, dict[str, torch.Tensor]]:
    """The tuned model with the same first weights each time, and a copy of all its weights."""
    torch.manual_seed(0)
    tuned = apply_method(model, recipe.method)
    return tuned, {name: p.detach().clone() for name, p in tuned.named_parameters()}


def train(
    tuned: Any, recipe: Recipe, batch: Batch, processes: Processes, optimizer: Any, steps: range
) -> list[float]:
    """The loss of each step."""
    objective = SftObjective(tuned)
    logs = fit(
        objective,
        objective,
        [(step, [batch]) for step in steps],
        optimizer,
        build_schedule(optimizer, recipe.train, STEPS),
        processes,
        part=begin_pruning(tuned, recipe.method, STEPS),
    )
    return [log.loss for log in logs]


def assert_goes_on_alike(
    tuned: Any, restored: Any, optimizer: Any, recipe: Recipe, batch: Batch, processes: Processes
) -> None:
    """One more step leaves both with the same weights, to the last bit."""
    anew = processes.prepare(build_optimizer(restored, recipe.train))
    anew.load_state_dict(deepcopy(optimizer.state_dict()))
    before = {name: p.detach().clone() for name, p in restored.named_parameters() if p.requires_grad}
    for model, its in ((tuned, optimizer), (restored, anew)):
        train(model, recipe, batch, processes, its, range(STEPS + 1, STEPS + 2))
    weights = dict(restored.named_parameters())
    assert not all(torch.equal(weights[name], old) for name, old in before.items())
    for name, weight in tuned.named_parameters():
        assert torch.equal(weight, weights[name]), name


def assert_only_own_weights_changed(tuned: Any, before: dict[str, torch.Tensor], own: str) -> None:
    changed = {name for name, p in tuned.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert {name for name in changed if own not in name} == set()
    assert changed <= {name for name, p in tuned.named_parameters() if p.requires_grad}


def copy_small_files(base: Path, folder: Path) -> None:
    for path in base.iterdir():
        if path.suffix != ".safetensors" and not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())


def encode_rows(tokenizer: Any, path: Path) -> Batch:
    rows = training_rows(tokenizer, Data(train=path, holdout_rows=1, max_tokens=200)).train.rows
    return collate(rows, tokenizer.pad_token_id)
