"""Before a run: the warning of a rate and length that are known to lose ordinary chat; after it: the cures.

Loads no torch.
"""

import math
from dataclasses import dataclass

from glmtune.recipe import Method, Recipe
from glmtune.recipe.retain import DEFAULT_RATIO
from glmtune.workflows.rates import is_rate_high, lower_rate

MOST_EPOCHS = 10
"""Epochs up to which a plan is not warned of."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds within which a method is known to keep ordinary chat."""

    distance: float
    """Steps x peak rate: AdamW moves no weight much further. Beyond this distance, rows seen in many epochs
    are memorised and other abilities are lost."""
    rate: float
    """Highest peak learning rate; above it chat is lost within any number of epochs."""


_LOW_RANK = Bounds(distance=0.1, rate=1e-2)
_OWN_WEIGHTS = Bounds(distance=0.02, rate=1e-3)
BOUNDS = {
    "full": _OWN_WEIGHTS,
    "freeze": _OWN_WEIGHTS,
    "lora": _LOW_RANK,
    "adalora": _LOW_RANK,
    "ptuning": Bounds(distance=0.5, rate=5e-2),
}
"""Bounds by method; other methods are never warned of. Runs that lost chat, as epochs and distance:

- P-Tuning: 64 epochs of 1000 rows at 2e-2 (40); 500 epochs of 12 rows at 2e-4 (1.2; on two cards 0.6);
- LoRA: 250 epochs of 12 rows at 2e-4 (0.3; on two cards 0.14), answers drifting into the rows' language;
- full: 16 epochs of 1200 rows at about 5e-5 (0.06), https://github.com/yangjianxin1/Firefly/issues/84.

Runs that kept it:

- 2 epochs at 1e-4 of LoRA, P-Tuning and Freeze, https://github.com/liucongg/ChatGLM-Finetuning;
- P-Tuning on ADGEN at 1e-4 (0.3), https://github.com/zai-org/ChatGLM-6B/issues/1148.

Full tuning forgets more than LoRA (Biderman et al. 2024, https://arxiv.org/abs/2405.09673), hence its fifth.
The highest rates are what maintainers call too large, https://github.com/zai-org/ChatGLM3/issues/532: such as
P-Tuning's 2e-2 with another method. Not warned of is P-Tuning on ADGEN as published (0.42 epochs at 2e-2):
many varied rows, none seen twice, although users of it miss ordinary chat too."""


def chat_loss_warning(
    method: Method, *, rows: int, steps: int, epochs: float, lr: float, ratio: float | None
) -> str | None:
    """Return a warning, with the cure, if a plan may lose ordinary chat; None for a plan within bounds.

    A plan is out of bounds if its peak rate `lr` is above the method's, or if it has more than `MOST_EPOCHS`
    epochs and goes beyond the method's distance. `ratio`: of its replay, None if it can have none.
    """
    bounds = BOUNDS.get(method.name)
    if bounds is None:
        return None
    if lr > bounds.rate:
        return (
            f"train.lr: {lr:g} is a rate at which {method.name} has lost ordinary chat; set "
            f"train.lr={method.default_lr:g}"
        )
    if epochs <= MOST_EPOCHS or steps * lr <= bounds.distance:
        return None
    highest = bounds.distance / steps
    digit = 10.0 ** math.floor(math.log10(highest))  # rounded down to one digit, such as 2e-04
    return (
        f"{epochs:.0f} epochs of {rows} rows at rate {lr:g}: runs like this have lost ordinary chat; set "
        f"train.epochs=2, or train.lr={math.floor(highest / digit) * digit:.0e}"
        + (
            f", or retain.ratio={more:g}"
            if ratio is not None and (more := _more_replay(ratio)) > ratio
            else ""
        )
        + ": docs/forgetting.md"
    )


MOST_REPLAY = 0.5
"""Share of replay up to which more of it is advised."""


def _more_replay(ratio: float) -> float:
    """Return the share of replay to advise to a run with such a share."""
    return min(2 * ratio, MOST_REPLAY) or DEFAULT_RATIO


def is_reported(recipe: Recipe) -> bool:
    """True if a run ends with a report of what was forgotten."""
    return recipe.retain.report != "off"


def cures(recipe: Recipe, *, lr: float, epochs: float) -> str:
    """Return the settings, for a hint, with which a run that was not `kept` forgets less."""
    settings, ratio = [], recipe.retain.ratio or 0.0
    if (more := _more_replay(ratio)) > ratio:
        settings.append(f"retain.ratio={more:g}")
    if is_rate_high(recipe.method, lr):
        settings.append(f"train.lr={recipe.method.default_lr:g}")
    if epochs > MOST_EPOCHS:
        settings.append("train.epochs=3")
    if not settings:
        settings = [f"train.lr={lower_rate(recipe.method, lr):g}"]
    return " ".join(settings)
