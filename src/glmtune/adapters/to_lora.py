"""Conversion of a pruned AdaLoRA adapter to plain LoRA with a rank for each target."""

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
from glmtune.models.protocol import CausalLM

with without_false_alarms():  # bitsandbytes', which PEFT imports
    from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel
    from peft.tuners.adalora import AdaLoraLayer

_EPSILON = 1e-5
"""Number that PEFT's SVDLinear adds to the rank by which it divides the scale."""

Factors = tuple[Tensor, Tensor]
"""LoRA's A (r, I) and B (O, r) of one target; their product is the whole update."""


def save_as_lora(tuned: PeftModel, folder: Path, card: Card | None = None) -> None:
    """Write the AdaLoRA adapter of a model as a LoRA adapter in PEFT's layout, with its card if given.

    The update B diag(E) A alpha / init_r becomes B A: E goes into A, the scale into B, and PEFT's own scale
    is 1 (alpha = r for each target). Triplets with E = 0 are left out, and so are targets without others.
    Raises `CheckpointError` if the adapter is not AdaLoRA, or has rank 0 everywhere.
    """
    factors = _factors(tuned)
    ranks = {name: len(a) for name, (a, _) in factors.items()}
    adalora: Any = tuned.peft_config[ADAPTER]
    config = _lora_config(adalora, ranks)
    config.save_pretrained(str(folder))
    tensors = _tensors(factors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if card is not None:
        method: dict[str, Any] = {
            "name": "lora",
            "r": config.r,
            "alpha": config.r,
            "dropout": adalora.lora_dropout,
            "target_modules": sorted(adalora.target_modules),
        }
        record_digests(replace(card, method=method), folder, tensors).save(folder)


def read_as_lora(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return config and tensors of an AdaLoRA folder as plain LoRA, from its tensors, without a model.

    Raises `CheckpointError` if it has rank 0 everywhere.
    """
    with explain_peft(folder):
        adalora: Any = PeftConfig.from_pretrained(str(folder))
        scale = adalora.lora_alpha / (adalora.init_r + _EPSILON)
        names = [name.removesuffix(".lora_E") for name in tensors if name.endswith(".lora_E")]
        factors = {}
        for name in names:
            a, b, e = (tensors[f"{name}.lora_{part}"].float() for part in "ABE")
            factors[name.removeprefix(START)] = _fold(a, b, e, scale)
        ranks = {name: len(a) for name, (a, _) in factors.items()}
        return _lora_config(adalora, ranks), _tensors(factors)


def wrap_in_peft(base: CausalLM, folder: str) -> PeftModel:
    """Load an adapter on its base with PEFT alone, without this program's checks."""
    return PeftModel.from_pretrained(base, folder)


def _lora_config(adalora: AdaLoraConfig, ranks: Mapping[str, int]) -> LoraConfig:
    """Return the config of LoRA with these ranks of its targets and a scale of 1."""
    largest = max(ranks.values())
    if not largest:
        raise CheckpointError("adapter: its ranks are all 0, so it changes nothing", hint="train it first")
    # the full names of layers serve as patterns; layers of the largest rank need none
    patterns = {name: rank for name, rank in ranks.items() if 0 < rank < largest}
    return LoraConfig(
        task_type=adalora.task_type,
        base_model_name_or_path=adalora.base_model_name_or_path,
        revision=adalora.revision,
        inference_mode=True,
        r=largest,
        lora_alpha=largest,
        rank_pattern=dict(patterns),
        alpha_pattern=dict(patterns),  # alpha = r: a scale of 1
        lora_dropout=adalora.lora_dropout,
        target_modules=adalora.target_modules,
        exclude_modules=[name for name, rank in ranks.items() if not rank] or None,
    )


@torch.no_grad()
def _factors(tuned: PeftModel) -> dict[str, Factors]:
    """Return the LoRA factors of an AdaLoRA model by the names of its layers."""
    base = tuned.get_base_model()
    factors = {}
    for name, layer in base.named_modules():
        if isinstance(layer, AdaLoraLayer):
            a, b, e = (part[ADAPTER].float() for part in (layer.lora_A, layer.lora_B, layer.lora_E))
            # `ranknum` is the first rank: pruning sets entries of E to 0 and leaves the scale
            scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER].float() + _EPSILON)
            factors[name] = _fold(a, b, e, scale)
    if not factors:
        raise CheckpointError(
            "adapter: not AdaLoRA's, so there is nothing to turn into LoRA", hint="LoRA is used as it is"
        )
    return factors


def _fold(a: Tensor, b: Tensor, e: Tensor, scale: Tensor | float) -> Factors:
    """Multiply E (r, 1) into A and the scale into B, without the pruned triplets."""
    is_kept = e[:, 0] != 0
    return (a * e)[is_kept], b[:, is_kept] * scale


def _tensors(factors: dict[str, Factors]) -> dict[str, Tensor]:
    """Return the factors by PEFT's names; layers of rank 0 are left out."""
    tensors = {}
    for name, (a, b) in factors.items():
        if len(a):
            tensors[f"{START}{name}.lora_A.weight"] = a.cpu().contiguous()
            tensors[f"{START}{name}.lora_B.weight"] = b.cpu().contiguous()
    return tensors
