"""Freeze: train some of the model's own weights, those of the last layers or of given names."""

import re
from collections.abc import Collection
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmtune.errors import ConfigError
from glmtune.folder import ModelFolder
from glmtune.models.computing import computes_in, is_router
from glmtune.models.protocol import CausalLM
from glmtune.models.shards import read_stored, scan_tensors
from glmtune.recipe.method import Freeze

NUM_LAYERS = 3
"""Number of last layers to train by default."""

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def apply_freeze(model: CausalLM, settings: Freeze) -> CausalLM:
    """Make only the chosen weights trainable. Raises ConfigError as `choose_weights`."""
    return train_weights(model, choose_weights(model, settings))


def train_weights(model: CausalLM, chosen: Collection[str]) -> CausalLM:
    """Make only the chosen weights trainable, and let their layers run in fp32 in a model that does not.

    The caller casts the weights to fp32. Outside of autocast, hooks cast the layers' inputs and outputs.
    """
    computing = computes_in(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    for module in model.modules():
        is_trained = any(p.requires_grad for p in module.parameters(recurse=False))
        # a router computes in fp32 whatever its weights are, and its choice must not be rounded
        if is_trained and computing != torch.float32 and not is_router(module):
            module.register_forward_pre_hook(_enter_fp32)
            module.register_forward_hook(partial(_leave_fp32, computing))
    return model


@torch.no_grad()
def read_unrounded(model: nn.Module, base: Path | ModelFolder) -> None:
    """Copy the unrounded numbers of the base's files into the trainable weights, which are fp32.

    Weights that the files store under other names (GLM-4.5's experts, one by one) stay as they are.
    """
    stored = scan_tensors(base)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name in stored:
            parameter.copy_(read_stored(stored[name]))


def choose_weights(model: nn.Module, settings: Freeze) -> list[str]:
    """Return the names of the weights that the settings choose: the last layers', or those of patterns.

    Raises ConfigError for a pattern that no name matches, for more layers than there are, and for weights
    that are stored as codes.
    """
    names = [name for name, _ in model.named_parameters()]
    if settings.patterns is None:
        numbers = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
        count, total = settings.num_layers or NUM_LAYERS, max(numbers.values()) + 1
        if count > total:
            raise ConfigError(
                f"method.num_layers: {count}, but the model has {total} layers",
                hint=f"1 to {total}, or method=full",
            )
        chosen = [name for name, number in numbers.items() if number >= total - count]
    else:
        matched = {name for pattern in settings.patterns for name in _matching(pattern, names)}
        chosen = [name for name in names if name in matched]
    for name in chosen:
        path, _, leaf = name.rpartition(".")
        # scales are floating numbers, but useless to train without their codes
        weight = model.get_submodule(path).get_parameter("weight" if leaf == "weight_scale" else leaf)
        if not weight.is_floating_point():
            raise ConfigError(
                f"method.name: freeze, but {name} is quantised: its codes cannot be trained",
                hint="choose others with method.patterns=..., open the base without quant, or method=lora",
            )
    return chosen


def _matching(pattern: str, names: Collection[str]) -> list[str]:
    matched = [name for name in names if fnmatchcase(name, pattern)]
    if not matched:
        near = get_close_matches(pattern.strip("*."), names, n=3, cutoff=0)
        raise ConfigError(
            f"method.patterns: no weight of this model is called {pattern!r}",
            hint=f"they are called as {', '.join(near)}; all: `glmtune info MODEL --names`",
        )
    return matched


def _enter_fp32(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _leave_fp32(dtype: torch.dtype, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output.to(dtype)
