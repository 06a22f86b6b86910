"""A warning at the end of a run whose evaluation loss did not fall."""

from collections.abc import Mapping
from typing import Any

from glmtune.recipe import Method
from glmtune.workflows.rates import is_rate_high, lower_rate

FEW_STEPS = 20
"""A run of fewer steps tells little about its learning rate."""
LONGER = 100
"""Steps to suggest if there were too few."""
RISEN = 1.02
"""Factor by which a loss must grow to count as risen; less is noise."""


def worse_warning(method: Method, lr: float, metrics: Mapping[str, Any]) -> str | None:
    """Return a warning, with the cure, if the evaluation loss never fell or ended above its start; else None.

    `metrics`: the figures of a training run, as `RunResult` has them.
    """
    if "first_eval_loss" not in metrics:
        return None
    first, last, best = (metrics[name] for name in ("first_eval_loss", "eval_loss", "best_eval_loss"))
    step = metrics["best_step"]
    if best is None or best >= first:
        lowest = last if best is None else best
        return (
            f"nothing was gained: evaluation loss {first:.4f} before the first step, at best {lowest:.4f} "
            f"after it; {_cure(method, lr, metrics)}"
        )
    if last <= first:
        return None
    return (
        f"the run ends worse than it began: evaluation loss {first:.4f} before, {last:.4f} after. Its best, "
        f"{best:.4f} at step {step}, is what chat and evaluate open; to do better, "
        f"{_lower(method, lr)}, or stop there: train.steps={step}"
    )


def _cure(method: Method, lr: float, metrics: Mapping[str, Any]) -> str:
    """Return the change that the figures speak for: more steps, a lower rate, or other validation rows."""
    steps = metrics["steps"]
    has_risen = metrics["eval_loss"] > RISEN * metrics["first_eval_loss"]
    if not lr:  # train.lr=0 learns nothing in any number of steps
        return _lower(method, lr)
    if steps < FEW_STEPS and not has_risen and not is_rate_high(method, lr):
        return f"{steps} steps are too few to learn from: {_anew(f'train.steps={LONGER}')}, or take more rows"
    if metrics["loss"] < metrics["first_loss"] / RISEN and not has_risen:
        return (
            "the training loss fell all the same: look whether the validation rows are like the training "
            f"rows, or {_lower(method, lr)}"
        )
    return _lower(method, lr)


def _lower(method: Method, lr: float) -> str:
    return _anew(f"train.lr={lower_rate(method, lr) or method.default_lr:g}")


def _anew(setting: str) -> str:
    return f"train anew with {setting} and another output="
