"""Checkpoints as a training run leaves them, without the training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from glmtune.adapters.store import save_trained
from glmtune.load import load_location, tokenizer_of
from glmtune.locations import resolve
from glmtune.methods import apply_method
from glmtune.recipe.parse import build_recipe
from glmtune.workflows.cards import look_at_base, write_card
from models import prune


def edit_card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Have a card changed by someone who has read how: without its seal."""
    path = folder / "glmtune.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    del card["sha256"]
    change(card)
    path.write_text(json.dumps(card), encoding="utf-8")


def make_checkpoint(
    base: Path,
    folder: Path,
    method: dict[str, Any],
    *,
    seed: int = 1,
    by: float = 0.2,
    dtype: str = "fp32",
    quant: str | None = None,
    is_pruned: bool = False,
) -> Path:
    """A base's trained weights, moved at random by so much, with a run's card; `by` 0: nothing learned."""
    recipe = build_recipe({"model": str(base), "method": method, "quant": quant})
    place = resolve(base)
    tokenizer = tokenizer_of(place, template=None)
    opened = load_location(place, template=None, dtype=dtype, device="cpu", quant=quant)
    untrained = look_at_base(opened, place, tokenizer)
    tuned = apply_method(opened, recipe.method).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in tuned.parameters():
        if parameter.requires_grad and by:
            parameter.data += torch.randn(parameter.shape, generator=generator) * by
    if is_pruned:
        prune(tuned)
    save_trained(tuned, folder, write_card(recipe, place, untrained, tokenizer, tuned, row_hashes={}, step=1))
    if method["name"] == "full":
        for path in base.iterdir():
            if path.suffix != ".safetensors" and not (folder / path.name).exists():
                (folder / path.name).write_bytes(path.read_bytes())
    return folder
