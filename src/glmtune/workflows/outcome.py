"""Whether a run has come to any good, told at its end."""

from collections.abc import Mapping
from typing import Any

from glmtune.recipe import Recipe
from glmtune.workflows.plan import lower_rate


def worse_warning(recipe: Recipe, metrics: Mapping[str, Any]) -> str | None:
    """What to do where the evaluation loss has not fallen, or has risen again; None where all is well.

    `metrics` are a training's figures, as `RunResult` has them.
    """
    if "first_eval_loss" not in metrics:
        return None
    first, last, best = (metrics[name] for name in ("first_eval_loss", "eval_loss", "best_eval_loss"))
    step = metrics["best_step"]
    anew = f"train anew with train.lr={lower_rate(recipe) or recipe.method.default_lr:g}"
    if best is None or best >= first:
        found = last if best is None else best
        return (
            f"nothing was gained: evaluation loss {first:.4f} before the first step, at best {found:.4f} "
            f"after it; {anew}, or look whether the validation rows are like the training rows"
        )
    if last <= first:
        return None
    return (
        f"the run ends worse than it began: evaluation loss {first:.4f} before, {last:.4f} after. Its best, "
        f"{best:.4f} at step {step}, is what chat and evaluate open; to do better, {anew}, or stop there: "
        f"train.steps={step}"
    )
