"""AdaLoRA's pruning schedule, and the check that a run has enough steps for it, before anything is loaded."""

from glmtune.errors import ConfigError
from glmtune.recipe.method import AdaLora

FEW_STEPS = 20
"""Fewer pruning steps tell little: the scores are running means over about the last 7 steps. Source: PEFT's
beta1 and beta2 of 0.85, github.com/huggingface/peft v0.21.2, tuners/adalora/config.py."""


def plan_pruning(settings: AdaLora, num_steps: int) -> tuple[int, int, int]:
    """Return the last step before pruning, the step at which ranks settle, and the steps between prunings.

    Raises `ConfigError` if no step is left to prune in.
    """
    # by default the first tenth of the steps gathers scores, and the last fifth trains the final ranks
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
    """Return a warning if there are too few steps to prune in, else None. Raises as `plan_pruning`."""
    warmup, end, _ = plan_pruning(settings, num_steps)
    if end - warmup >= FEW_STEPS:
        return None
    return (
        f"method.name: adalora has {end - warmup} of {num_steps} steps to prune in: too few to tell which "
        "ranks matter. It wants some hundreds of steps: train.steps=300; with fewer take method=lora"
    )
