"""LoRA, rsLoRA and DoRA through PEFT."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn

from glmtune.errors import ConfigError
from glmtune.families import find_family
from glmtune.models.protocol import CausalLM
from glmtune.recipe.method import ALL_LINEAR, Lora, LowRank

ADAPTER = "default"
"""PEFT's name for a model's only adapter."""


def apply_lora(model: CausalLM, settings: Lora) -> Any:
    """Freeze the model and add LoRA's factors A and B to each target layer.

    Raises `ConfigError` listing the possible names if a target is none of them.
    """
    from peft import LoraConfig, get_peft_model

    from glmtune.methods.fused_lora import fuse_lora

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=find_targets(model, settings),
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
    )
    tuned = get_peft_model(model, config)
    fuse_lora(tuned)
    return tuned


def find_targets(model: CausalLM, settings: LowRank) -> list[str]:
    """Return the last name parts of the linear layers to adapt: `method.target_modules`, else the default.

    The default differs by family (`Family.lora_targets`): `query_key_value`, or `q_proj`, `k_proj`, `v_proj`
    and `o_proj` where transformers has the class (GLM-4-hf, 0414, 4.5), and so do the sets that have a name
    (`Family.linear_sets`). Raises `ConfigError` listing the possible names for a target that is no linear
    layer, or that experts have too; also for a set with such a layer.
    """
    family = find_family(model.config.model_type)
    sets = {**family.linear_sets, ALL_LINEAR: tuple(chain(*family.linear_sets.values()))}
    # PEFT matches last name parts, so a name that experts have too would adapt them as well
    possible = [name for name in linear_names(model) if name not in family.experts]
    whole = [name for name, names in sets.items() if set(names) <= set(possible)]
    targets: dict[str, None] = {}
    for asked in settings.target_modules or family.lora_targets:
        for name in sets.get(asked, (asked,)):
            if name not in possible:
                problem = _explain(model, name, family.experts)
                part_of = f"{asked} is {', '.join(sets[asked])}; " if asked in sets else ""
                raise ConfigError(
                    f"method.target_modules: {part_of}{problem}",
                    hint=f"possible are {', '.join(possible)}; or a set: {', '.join(whole)}",
                )
            targets[name] = None
    return list(targets)


def _explain(model: nn.Module, name: str, experts: Iterable[str]) -> str:
    """Explain why no adapter can be added to what the model calls `name`."""
    if name in experts:
        return (
            f"{name} is also what this model's experts are made of, and adapters on those are not supported"
        )
    for kind, parts in (("part", model.named_modules()), ("parameter", model.named_parameters())):
        for path, part in parts:
            if path.rpartition(".")[2] == name:
                what = type(part).__name__ if kind == "part" else f"parameter of shape {list(part.shape)}"
                return f"{name} is a {what} in this model, and adapters go on linear layers alone"
    return f"this model has no linear layer called {name!r}"


def linear_names(model: nn.Module) -> list[str]:
    """Return the last name parts of the model's linear layers, in order of first appearance."""
    names = (name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear))
    return list(dict.fromkeys(names))


@torch.no_grad()
def widen_adapter(tuned: CausalLM, name: str = ADAPTER) -> None:
    """Cast an adapter's factors to fp32, and set the divisor of AdaLoRA's scale to exactly `init_r`."""
    from peft.tuners.tuners_utils import cast_adapter_dtype

    cast_adapter_dtype(tuned, name)
    configs: Any = tuned.peft_config
    for part in tuned.modules():
        ranks: Any = getattr(part, "ranknum", {})
        if name in ranks:
            # PEFT creates it in the base's type, where bf16 would round it, and as trainable
            rank = torch.full((1,), float(configs[name].init_r), device=ranks[name].device)
            ranks[name] = nn.Parameter(rank, requires_grad=False)
