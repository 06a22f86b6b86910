"""Adapters of every kind whose weights have moved, in folders as a run leaves them."""

from pathlib import Path
from typing import Any

import torch

from glmtune import load_model
from glmtune.adapters.store import Card, save_trained
from glmtune.families import identify
from glmtune.methods import apply_method
from glmtune.recipe import Method
from glmtune.recipe.parse import build_recipe
from models import prune

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 4, "dropout": 0},
    "wide": {"name": "lora", "r": 8, "alpha": 4, "dropout": 0},
    "rslora": {"name": "lora", "use_rslora": True},
    "dora": {"name": "lora", "use_dora": True},
    "adalora": {"name": "adalora", "init_r": 6, "target_r": 4},
    "pruned": {"name": "adalora", "init_r": 6, "target_r": 4},
    "short": {"name": "ptuning", "num_prefix_tokens": 3},
    "projected": {"name": "ptuning", "num_prefix_tokens": 5, "projection": True},
}


def settings_of(method: dict[str, Any]) -> Method:
    return build_recipe({"model": "m", "method": method}).method


def tune(base: Path, folder: Path, method: str, quant: str | None = None, **settings: Any) -> Path:
    """An adapter whose weights have moved; `settings` of the method beside those of its name."""
    chosen = {**METHODS[method], **settings}
    tuned = apply_method(load_model(base, dtype="fp32", quant=quant), settings_of(chosen))
    generator = torch.Generator().manual_seed(len(method))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    if method == "pruned":
        prune(tuned)
    card = Card(base=str(base), template=identify(base).template or "", method=chosen, quant=quant)
    save_trained(tuned, folder, card)
    return folder
