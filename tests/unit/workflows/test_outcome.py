"""A run that came to no good says so, with what its figures speak for."""

from typing import Any

import pytest

from glmtune.recipe import Lora
from glmtune.workflows.outcome import worse_warning

HIGH, USUAL = 1e-2, 1e-4


def figures(first: float, last: float, best: float | None, step: int | None, **more: Any) -> dict[str, Any]:
    evaluated = {"first_eval_loss": first, "eval_loss": last, "best_eval_loss": best, "best_step": step}
    return {"steps": 100, "first_loss": 4.0, "loss": 4.0, **evaluated, **more}


def test_a_run_that_gets_better_is_silent() -> None:
    assert worse_warning(Lora(), HIGH, figures(3.0, 2.0, 2.0, 9)) is None
    assert worse_warning(Lora(), HIGH, figures(3.0, 2.5, 2.0, 4)) is None
    assert worse_warning(Lora(), HIGH, {"steps": 3, "best_step": None}) is None


def test_a_run_that_never_gets_better_is_offered_a_lower_rate() -> None:
    for best in (3.5, 3.0, None):
        warning = str(worse_warning(Lora(), HIGH, figures(3.0, 4.0, best, 2)))
        assert warning.startswith("nothing was gained: evaluation loss 3.0000 before the first step, ")
        assert "train anew with train.lr=0.0001 and another output=" in warning


@pytest.mark.parametrize(
    ("lr", "found", "cure"),
    [
        (
            USUAL,
            figures(3.0, 3.001, 3.0, 4, steps=4),
            "4 steps are too few to learn from: train anew with tra",
        ),
        (USUAL, figures(3.0, 3.001, 3.0, 4, steps=50), "train.lr=1e-05"),
        (USUAL, figures(3.0, 4.0, 3.0, 4, steps=4), "train.lr=1e-05"),  # it has risen: that is the rate
        (HIGH, figures(3.0, 3.001, 3.0, 4, steps=4), "train.lr=0.0001"),
        (USUAL, figures(3.0, 3.001, 3.0, 4, loss=2.0), "look whether the validation rows are like the"),
    ],
)
def test_the_cure_is_what_the_figures_speak_for(lr: float, found: dict[str, Any], cure: str) -> None:
    warning = str(worse_warning(Lora(), lr, found))
    assert cure in warning
    assert ("train.lr" in warning) == (found["steps"] != 4 or cure.startswith("train.lr"))


def test_a_run_that_gets_worse_again_names_its_best() -> None:
    warning = str(worse_warning(Lora(), HIGH, figures(3.0, 4.0, 2.0, 5)))
    assert warning.startswith("the run ends worse than it began: evaluation loss 3.0000 before, 4.0000 after")
    assert "2.0000 at step 5, is what chat and evaluate open" in warning
    assert "train.steps=5" in warning


def test_a_run_at_rate_0_is_offered_the_methods_rate() -> None:
    assert "train.lr=0.0001" in str(worse_warning(Lora(), 0.0, figures(3.0, 3.0, 3.0, 1, steps=4)))
