"""When AdaLoRA prunes, and whether a run has the steps for it: told before anything is loaded."""

from glmtune.errors import ConfigError
from glmtune.recipe.method import AdaLora

FEW_STEPS = 20
"""Fewer steps to prune in tell little: the scores of what matters are means over about the last 7 of them.
Source: PEFT's beta1 and beta2 of 0.85, github.com/huggingface/peft v0.21.0, tuners/adalora/config.py."""


def plan_pruning(settings: AdaLora, num_steps: int) -> tuple[int, int, int]:
    """The last step before pruning begins, the step at which the ranks settle, the steps between prunings.

    Raises `ConfigError` if no step is left to prune in.
    """
    warmup = num_steps // 10 if settings.warmup_steps is None else settings.warmup_steps
    final = num_steps // 5 if settings.final_steps is None else settings.final_steps
    if warmup >= num_steps - final:
        raise ConfigError(
            f"method.warmup_steps {warmup} and method.final_steps {final} leave none of the run's "
            f"{num_steps} steps to prune in",
            hint="lower them, leave them out, or train for longer (train.steps, train.epochs)",
        )
    return warmup, num_steps - final, settings.prune_every or max(1, num_steps // 100)


def few_steps_warning(settings: AdaLora, num_steps: int) -> str | None:
    """What too few steps make of the ranks; None where they are enough. Raises as `plan_pruning`."""
    warmup, end, _ = plan_pruning(settings, num_steps)
    if end - warmup >= FEW_STEPS:
        return None
    return (
        f"method.name: adalora has {end - warmup} of {num_steps} steps to prune in: too few to tell which "
        "ranks matter. It wants some hundreds of steps: train.steps=300; with fewer take method=lora"
    )
