"""How much of what was trained is applied: base + strength x update, from 0, the base, to 1, as trained.

Between the two lies a model that has learned less and forgotten less; no training is needed to move along
that line. Of LoRA and AdaLoRA the scale is multiplied. DoRA's lengths make its update no multiple of its
factors, so the difference that a layer makes to the base's output is multiplied instead. Weights that
training has replaced (freeze, full, PEFT's modules_to_save) become base + strength x (trained - base). A
prefix is no difference of weights: nothing lies between it and none.

Source: Wortsman et al. 2022, https://arxiv.org/abs/2109.01903 (weights between untuned and tuned ones).
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from glmtune.adapters.peft_rules import read_adapter_config_if_there
from glmtune.adapters.store import own_method
from glmtune.errors import ConfigError
from glmtune.methods.lora import ADAPTER
from glmtune.models.protocol import CausalLM
from glmtune.models.wrapped import is_wrapped
from glmtune.recipe.method import TrainedPart

STRONGEST = 2.0
"""Largest strength. Above 1 the update goes further than training took it."""

_NOT_SCALED = ("trainable_token_indices", "bias")
"""Keys of adapter_config.json that change the base's own numbers, of which no copy is kept."""


def require_strength(strength: float, adapter: Path | None) -> None:
    """Raise `ConfigError` unless an adapter's folder, or a whole model (None), can have this strength."""
    if not 0 <= strength <= STRONGEST:  # true of nan too
        raise ConfigError(
            f"strength: {strength:g} is not allowed",
            hint=f"from 0, the base, to 1, as it was trained; up to {STRONGEST:g} goes beyond",
        )
    if strength == 1 or adapter is None:
        return
    settings = read_adapter_config_if_there(adapter)
    for key in _NOT_SCALED:
        if settings.get(key, "none") not in (None, "none", [], {}):
            raise ConfigError(
                f"strength: {adapter} sets {key}, which changes the base's own numbers in place",
                hint="adapters that leave those alone have a strength; open this one at 1",
            )
    method = None if settings else own_method(adapter)
    if method and method.kept is TrainedPart.PREFIX and strength:
        raise ConfigError(
            f"strength: {adapter} is a prefix of P-Tuning, and nothing lies between it and none: 0 or 1",
            hint="train it for fewer steps or at a lower rate (train.lr=...); or train LoRA",
        )


def blend(base: Tensor, trained: Tensor, strength: float) -> Tensor:
    """Return base + strength x (trained - base) in fp32; exactly `base` at 0, exactly `trained` at 1."""
    return torch.lerp(base.float(), trained.to(base.device, torch.float32), strength)


@torch.no_grad()
def set_strength(model: CausalLM, strength: float, base: Mapping[str, Tensor] = MappingProxyType({})) -> None:
    """Give what was trained this strength, in place, once, in a model as it was loaded.

    `base` has the base's own weights by name, of those that freeze or full have replaced; adapters in PEFT's
    layout need none. Raises `ConfigError` for DoRA of an embedding; `require_strength` has refused the rest.
    """
    if strength == 1:
        return
    if is_wrapped(model):
        _scale_layers(model, strength)
    elif base:
        own = dict(model.named_parameters())
        for name, weight in base.items():
            # at 0 the base's own tensor in its own type: products in another may round otherwise
            mixed = weight if not strength else blend(weight, own[name], strength).to(own[name].dtype)
            own[name].data = mixed
    else:
        model.hold_prefix(None)


def _scale_layers(tuned: nn.Module, strength: float) -> None:
    """Scale the updates of PEFT's layers."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.dora import DoraEmbeddingLayer
    from peft.utils.other import ModulesToSaveWrapper

    for name, part in tuned.named_modules():
        if isinstance(part, ModulesToSaveWrapper):
            for leaf, weight in part.modules_to_save[ADAPTER].named_parameters():
                weight.copy_(blend(part.original_module.get_parameter(leaf), weight, strength))
        elif isinstance(part, LoraLayer) and ADAPTER in part.scaling:
            lengths = part.lora_magnitude_vector
            if ADAPTER not in lengths:
                part.scaling[ADAPTER] *= strength
            elif isinstance(lengths[ADAPTER], DoraEmbeddingLayer):
                raise ConfigError(
                    f"strength: {name} is an embedding with DoRA, whose update cannot be scaled",
                    hint="open it at strength 1",
                )
            else:
                lengths[ADAPTER].register_forward_hook(partial(_scale_output, strength))


def _scale_output(strength: float, _module: nn.Module, _inputs: object, difference: Tensor) -> Tensor:
    """Scale what DoRA adds to the base's output; a forward hook."""
    return difference * strength
