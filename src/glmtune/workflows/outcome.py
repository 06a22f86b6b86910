"""Whether a run has come to any good, told at its end."""

from collections.abc import Mapping
from typing import Any

from glmtune.recipe import Recipe
from glmtune.workflows.plan import is_rate_high, lower_rate

FEW_STEPS = 20
"""Fewer steps than this say little about a learning rate."""
LONGER = 100
"""Steps to offer where there were too few."""
RISEN = 1.02
"""A loss this many times the earlier one has risen, and not only wavered."""


def worse_warning(recipe: Recipe, metrics: Mapping[str, Any]) -> str | None:
    """What to do where the evaluation loss has not fallen, or has risen again; None where all is well.

    `metrics` are a training's figures, as `RunResult` has them.
    """
    if "first_eval_loss" not in metrics:
        return None
    first, last, best = (metrics[name] for name in ("first_eval_loss", "eval_loss", "best_eval_loss"))
    step = metrics["best_step"]
    if best is None or best >= first:
        found = last if best is None else best
        return (
            f"nothing was gained: evaluation loss {first:.4f} before the first step, at best {found:.4f} "
            f"after it; {_cure(recipe, metrics)}"
        )
    if last <= first:
        return None
    return (
        f"the run ends worse than it began: evaluation loss {first:.4f} before, {last:.4f} after. Its best, "
        f"{best:.4f} at step {step}, is what chat and evaluate open; to do better, {_lower(recipe)}, or stop "
        f"there: train.steps={step}"
    )


def _cure(recipe: Recipe, metrics: Mapping[str, Any]) -> str:
    """What the figures speak for: more steps, a lower rate, or other validation rows."""
    steps = metrics["steps"]
    has_risen = metrics["eval_loss"] > RISEN * metrics["first_eval_loss"]
    if not recipe.train.lr:
        return _lower(recipe)
    if steps < FEW_STEPS and not has_risen and not is_rate_high(recipe):
        return f"{steps} steps are too few to learn from: {_anew(f'train.steps={LONGER}')}, or take more rows"
    if metrics["loss"] < metrics["first_loss"] / RISEN and not has_risen:
        return (
            "the training loss fell all the same: look whether the validation rows are like the training "
            f"rows, or {_lower(recipe)}"
        )
    return _lower(recipe)


def _lower(recipe: Recipe) -> str:
    return _anew(f"train.lr={lower_rate(recipe) or recipe.method.default_lr:g}")


def _anew(setting: str) -> str:
    return f"train anew with {setting} and another output="
