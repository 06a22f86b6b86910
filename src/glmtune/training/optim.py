"""AdamW and the learning rate's course."""

import math

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from glmtune.recipe import Train


def build_optimizer(model: nn.Module, settings: Train) -> AdamW:
    """AdamW over the trainable weights; no decay on norms and biases. `settings.lr` must be filled in."""
    assert settings.lr is not None
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
    )


def build_schedule(optimizer: Optimizer, settings: Train, steps: int) -> LambdaLR:
    """Warm-up from 0, then `settings.schedule` down to 0 at `steps` (the same curves as transformers')."""

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
