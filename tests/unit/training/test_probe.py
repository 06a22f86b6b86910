"""What the probe expects of a micro-batch, from a few short rows, against what the micro-batch then takes."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from glmtune import load_model, load_tokenizer
from glmtune.data.batches import Batch, collate
from glmtune.errors import ConfigError
from glmtune.methods import apply_method
from glmtune.models.recomputing import layers_of, recompute
from glmtune.objectives import SftObjective
from glmtune.recipe.parse import build_recipe
from glmtune.training.allocations import ResidentMeter, TensorMeter, meter_of, trim_heap
from glmtune.training.probe import Extent, longest_rows, measure_need, part_of, untouched
from glmtune.training.processes import Processes
from glmtune.workflows.rows import training_rows
from models import random_rows, tiny_folder, tiny_hf_folder, tiny_model, tiny_v1_folder

CPU = torch.device("cpu")
ADVERTS = Path(__file__).parents[3] / "examples" / "adverts.jsonl"
LOOSE = 1.2
"""What is expected may be so much more than what it takes; and the logits, as if all tokens were learned.
The scores of attention, there for one row at a time, are counted for all: in models so small it shows."""
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "ChatGLM3": lambda folder: tiny_folder(folder, num_layers=6, hidden_size=64, kv_channels=16),
    "ChatGLM-6B": lambda folder: tiny_v1_folder(folder),
    "GLM-4-0414": lambda folder: tiny_hf_folder(folder, "GLM-4-0414"),
    "GLM-4.5": lambda folder: tiny_hf_folder(folder, "GLM-4.5"),
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora"},
    "full": {"name": "full"},
    "ptuning": {"name": "ptuning", "num_prefix_tokens": 8},
}


def taken(objective: SftObjective, batch: Batch, recomputed: int) -> int:
    """The most bytes at once of a pass forward and backward, once the gradients are there."""
    recompute(objective.model, recomputed)
    with untouched(objective, CPU):
        known = [*objective.parameters(), *objective.buffers()]
        known += [p.grad for p in objective.parameters() if p.grad is not None]
        with meter_of(CPU, known) as meter, objective.passes():
            objective(batch).backward()
    return meter.peak


@pytest.mark.parametrize(
    ("family", "method"),
    [pair for pair in product(FAMILIES, METHODS) if pair[1] != "ptuning" or "ChatGLM" in pair[0]],
)
def test_a_long_micro_batch_takes_what_short_rows_have_shown(
    tmp_path: Path, family: str, method: str
) -> None:
    folder = FAMILIES[family](tmp_path / "model")
    recipe = build_recipe(
        {
            "model": str(folder),
            "method": METHODS[method],
            "data": {"train": ADVERTS, "max_tokens": 500, "max_rows": 16},
        }
    )
    tokenizer = load_tokenizer(folder)
    rows = training_rows(tokenizer, recipe.data).train.rows
    objective = SftObjective(apply_method(load_model(folder, dtype="fp32"), recipe.method))
    vocab_size = objective.model.config.vocab_size
    need = measure_need(objective, longest_rows(rows, 1)[0], tokenizer.pad_token_id, Processes())
    number = len(layers_of(objective))
    assert need.num_layers == number
    for chosen, recomputed in product((rows[:1], rows[:8], rows), sorted({0, number // 2, number})):
        batch = collate(chosen, tokenizer.pad_token_id)
        expected = need.bytes_at(Extent.of(batch), recomputed=recomputed)
        true = taken(objective, batch, recomputed)
        logits = need.bytes_per_logit * len(batch.input_ids) * vocab_size
        assert true <= expected <= LOOSE * true + logits


def test_the_meter_counts_what_lives_and_no_view_twice() -> None:
    weight = torch.ones(1000)
    with TensorMeter([weight]) as meter:
        view = weight[:10]
        one = weight + 1
        assert meter.live == 4000
        also = one.view(10, 100)[1:]
        two = (also * 2).sum()
        assert meter.live == 4000 + two.untyped_storage().nbytes()
        assert meter.peak == 4000 + 4 * also.numel() + two.untyped_storage().nbytes()
        del one
        assert meter.live > 4000  # its view is there
        del also
        assert meter.live == two.untyped_storage().nbytes()
    assert view.sum() == 10


@pytest.mark.skipif(not psutil.LINUX, reason="asks the kernel")
def test_the_resident_meter_counts_what_is_no_tensor_and_is_gone_again() -> None:
    size = 64 * 2**20
    with ResidentMeter() as meter:
        scratch = bytearray(b"1") * size
        del scratch
    assert 0.95 * size <= meter.peak <= 1.5 * size  # the kernel counts pages in batches
    with ResidentMeter() as meter:
        pass
    assert meter.peak < size / 2


def test_a_part_of_a_row_keeps_its_first_learned_tokens() -> None:
    for row, length in product(random_rows(40), (1, 2, 5)):
        part = part_of(row, length)
        assert len(part.input_ids) == len(part.labels) == length
        assert 1 <= int((part.labels != -100).sum()) <= 2
        first = int((row.labels != -100).argmax())
        assert row.labels[first] in part.labels


def test_the_first_layers_are_recomputed_and_more_than_there_are_is_an_error() -> None:
    model: nn.Module = tiny_model(num_layers=3)
    for setting, expected in (
        (2, [True, True, False]),
        (True, [True] * 3),
        (False, [False] * 3),
        (0, [False] * 3),
    ):
        recompute(model, setting)
        assert [layer.gradient_checkpointing for layer in layers_of(model)] == expected
    with pytest.raises(ConfigError, match="gradient_checkpointing: 4, but this model has 3 layers"):
        recompute(model, 4)


@pytest.mark.skipif(not psutil.LINUX, reason="reads /proc")
def test_freed_memory_goes_back_to_the_system() -> None:
    """In pieces too small to be mapped on their own, under one that stays, the heap's top is never free."""
    pieces = [torch.ones(16_000) for _ in range(1600)]  # 98 MiB
    kept = torch.ones(16_000)
    del pieces
    before = psutil.Process().memory_info().rss
    trim_heap()
    assert before - psutil.Process().memory_info().rss > 50 * 2**20
    assert kept.sum() == 16_000
