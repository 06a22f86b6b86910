"""LoRA, rsLoRA and DoRA through PEFT."""

from typing import Any

from torch import nn

from glmtune.errors import ConfigError
from glmtune.family import find_family
from glmtune.recipe import Lora
from glmtune.recipe.method import LowRank


def apply_lora(model: Any, settings: Lora) -> Any:
    """Freeze the model and put LoRA beside each target layer.

    Raises `ConfigError` listing the valid names if a target does not exist in this model.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=find_targets(model, settings),
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
    )
    return get_peft_model(model, config)


def find_targets(model: Any, settings: LowRank) -> list[str]:
    """The names of the linear layers to adapt, the family's own if the settings leave them open.

    Raises `ConfigError` listing the valid names if one does not exist in this model.
    """
    targets = settings.target_modules or find_family(model.config.model_type).lora_targets
    valid = linear_names(model)
    for name in targets:
        if name not in valid:
            raise ConfigError(
                f"method.target_modules: this model has no linear layer called {name!r}",
                hint=f"its linear layers are {', '.join(valid)}",
            )
    return list(targets)


def linear_names(model: nn.Module) -> list[str]:
    """Last name parts of the model's linear layers, in order of first appearance."""
    names = (name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear))
    return list(dict.fromkeys(names))
