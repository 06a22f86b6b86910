"""The optimizer, AdamW in 32 or 8 bits, and the learning rate schedule."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from glmtune.extras import require
from glmtune.recipe import Train
from glmtune.training.sharding import is_shared_out, own_bytes, own_part


def find_optimizer(settings: Train) -> Callable[..., Optimizer]:
    """Return the optimizer's class. Raises MissingDependencyError if bitsandbytes is needed and missing."""
    if settings.optimizer == "adamw":
        return AdamW
    adamw_8bit: Callable[..., Optimizer] = require("bitsandbytes", extra="bitsandbytes").optim.AdamW8bit
    return adamw_8bit


def build_optimizer(model: nn.Module, settings: Train) -> Optimizer:
    """Return AdamW over the trainable weights, without weight decay on norms and biases.

    `settings.lr` must be set. `adamw_8bit` stores its two means as 8-bit codes in blocks of 256, each block
    with a scale; the means of tensors of less than 4096 numbers, and of embeddings, stay fp32.
    Source: https://arxiv.org/abs/2110.02861, sections 2.1 and 2.3.
    """
    assert settings.lr is not None
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = find_optimizer(settings)(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
    )
    if settings.optimizer == "adamw_8bit":
        # Start the embeddings' means in fp32, which bitsandbytes then keeps. Its own way, GlobalOptimManager,
        # is a table of the whole program by ids of weights, which outlives the run.
        embeddings = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
        for weight in (weight for weight in embeddings if weight.requires_grad):
            means = {name: torch.zeros_like(weight, dtype=torch.float32) for name in ("state1", "state2")}
            optimizer.state[weight] = {"step": 0, **means}
    return optimizer


def state_bytes(model: nn.Module, settings: Train | None, *, num_processes: int, shared_by: int = 1) -> int:
    """Return the bytes of the trained weights' gradients and, with settings, of the optimizer's means.

    Several processes each hold the gradients once more, to exchange them, unless they share them: weights
    that are shared already count with their part, of others that will be `shared_by` tells it.
    """
    trained = [own_part(p) for p in model.parameters() if p.requires_grad]
    is_shared = shared_by > 1 or any(is_shared_out(p) for p in model.parameters())
    copies = 2 if num_processes > 1 and not is_shared else 1
    gradients = sum(p.numel() * p.element_size() for p in trained) * copies // shared_by
    if settings is None:
        return gradients
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    is_8bit = settings.optimizer == "adamw_8bit"
    means = sum(
        p.numel() * (2 if is_8bit and p.numel() >= 4096 and id(p) not in embeddings else 8) for p in trained
    )
    return gradients + means // shared_by


def update_bytes(model: nn.Module, device: torch.device) -> int:
    """Return the bytes that AdamW's step takes beside its means: two numbers for each of a weight's.

    On a CPU of one weight after the other, on a card of all at once, one number for each.
    Source: pytorch 2.13, torch/optim/adamw.py, `_single_tensor_adamw` and `_multi_tensor_adamw`.
    """
    sizes = [own_bytes(p) for p in model.parameters() if p.requires_grad]
    return 2 * max(sizes, default=0) if device.type == "cpu" else sum(sizes)


def build_schedule(optimizer: Optimizer, settings: Train, steps: int) -> LambdaLR:
    """Return a warm-up from 0, then `settings.schedule` down to 0 at `steps`, as transformers' curves."""

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return step / settings.warmup_steps
        done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
        if settings.schedule == "linear":
            return max(0.0, 1.0 - done)
        if settings.schedule == "cosine":
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
        return 1.0

    return LambdaLR(optimizer, factor)
