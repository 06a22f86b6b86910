"""A pruned AdaLoRA adapter as plain LoRA, each target with its own rank: smaller, and known everywhere."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glmtune.adapters.digest import record_digests
from glmtune.adapters.factors import START
from glmtune.adapters.peft_settings import explain_peft
from glmtune.adapters.store import Card
from glmtune.errors import CheckpointError
from glmtune.log import without_false_alarms
from glmtune.methods.lora import ADAPTER

with without_false_alarms():  # bitsandbytes', which PEFT imports
    from peft import LoraConfig, PeftConfig, PeftModel
    from peft.tuners.adalora import AdaLoraLayer

_EPSILON = 1e-5
"""What PEFT's SVDLinear adds to the rank that it divides the scale by."""

Factors = tuple[Tensor, Tensor]
"""A (r, I) and B (O, r) of one target, whose product is the whole update."""


def save_as_lora(tuned: PeftModel, folder: Path, card: Card | None = None) -> None:
    """Write the AdaLoRA adapter on a model as a LoRA adapter in PEFT's layout, and its card if given.

    The update B diag(E) A alpha / init_r becomes B A: E goes into A, the scale into B, and PEFT's own scale
    is 1 (alpha = r, target by target). Triplets with E = 0 are left out, and so is a target without others.
    Raises `CheckpointError` if the adapter is no AdaLoRA, or has rank 0 everywhere.
    """
    factors = _factors(tuned)
    ranks = {name: len(a) for name, (a, _) in factors.items()}
    theirs: Any = tuned.peft_config[ADAPTER]
    config = _lora_config(theirs, ranks)
    config.save_pretrained(str(folder))
    tensors = _tensors(factors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if card is not None:
        method: dict[str, Any] = {
            "name": "lora",
            "r": config.r,
            "alpha": config.r,
            "dropout": theirs.lora_dropout,
        }
        method["target_modules"] = sorted(theirs.target_modules)
        record_digests(replace(card, method=method), folder, tensors).save(folder)


def read_as_lora(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The same of an AdaLoRA adapter in a folder, from its tensors, without a model.

    Raises `CheckpointError` if it has rank 0 everywhere.
    """
    with explain_peft(folder):
        theirs: Any = PeftConfig.from_pretrained(str(folder))
        scale = theirs.lora_alpha / (theirs.init_r + _EPSILON)
        names = [name.removesuffix(".lora_E") for name in tensors if name.endswith(".lora_E")]
        factors = {}
        for name in names:
            a, b, e = (tensors[f"{name}.lora_{part}"].float() for part in "ABE")
            factors[name.removeprefix(START)] = _fold(a, b, e, scale)
        return _lora_config(theirs, {name: len(a) for name, (a, _) in factors.items()}), _tensors(factors)


def wrap_in_peft(base: Any, folder: str) -> PeftModel:
    """An adapter on its base as PEFT opens it by itself, without any of this program's checks."""
    return PeftModel.from_pretrained(base, folder)


def _lora_config(theirs: Any, ranks: Mapping[str, int]) -> LoraConfig:
    """For targets of these ranks, whose scale is 1."""
    largest = max(ranks.values())
    if not largest:
        raise CheckpointError("adapter: its ranks are all 0, so it changes nothing", hint="train it first")
    patterns = {name: rank for name, rank in ranks.items() if 0 < rank < largest}
    return LoraConfig(
        task_type=theirs.task_type,
        base_model_name_or_path=theirs.base_model_name_or_path,
        revision=theirs.revision,
        inference_mode=True,
        r=largest,
        lora_alpha=largest,
        rank_pattern=dict(patterns),
        alpha_pattern=dict(patterns),
        lora_dropout=theirs.lora_dropout,
        target_modules=theirs.target_modules,
        exclude_modules=[name for name, rank in ranks.items() if not rank] or None,
    )


@torch.no_grad()
def _factors(tuned: PeftModel) -> dict[str, Factors]:
    """By the layer's name."""
    base = tuned.get_base_model()
    layers = {name: part for name, part in base.named_modules() if isinstance(part, AdaLoraLayer)}
    if not layers:
        raise CheckpointError(
            "adapter: not AdaLoRA's, so there is nothing to turn into LoRA", hint="LoRA is used as it is"
        )
    return {name: _factors_of(layer) for name, layer in layers.items()}


def _factors_of(layer: Any) -> Factors:
    a, b, e = (part[ADAPTER].float() for part in (layer.lora_A, layer.lora_B, layer.lora_E))
    return _fold(a, b, e, layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER].float() + _EPSILON))


def _fold(a: Tensor, b: Tensor, e: Tensor, scale: Tensor | float) -> Factors:
    kept = e[:, 0] != 0
    return (a * e)[kept], b[:, kept] * scale


def _tensors(factors: dict[str, Factors]) -> dict[str, Tensor]:
    """By the names that PEFT gives them."""
    tensors = {}
    for name, (a, b) in factors.items():
        if len(a):
            tensors[f"{START}{name}.lora_A.weight"] = a.cpu().contiguous()
            tensors[f"{START}{name}.lora_B.weight"] = b.cpu().contiguous()
    return tensors
