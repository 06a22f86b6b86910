"""A run that came to no good says so, with what to do."""

from glmtune.recipe import load_recipe
from glmtune.workflows.outcome import worse_warning

RECIPE = load_recipe({"model": "m", "train": {"lr": 1e-2}})


def figures(first: float, last: float, best: float | None, step: int | None) -> dict[str, float | None]:
    return {"first_eval_loss": first, "eval_loss": last, "best_eval_loss": best, "best_step": step}


def test_a_run_that_gets_better_is_silent() -> None:
    assert worse_warning(RECIPE, figures(3.0, 2.0, 2.0, 9)) is None
    assert worse_warning(RECIPE, figures(3.0, 2.5, 2.0, 4)) is None
    assert worse_warning(RECIPE, {"steps": 3, "best_step": None}) is None


def test_a_run_that_never_gets_better_is_offered_a_lower_rate() -> None:
    for best in (3.5, 3.0, None):
        warning = str(worse_warning(RECIPE, figures(3.0, 4.0, best, 2)))
        assert warning.startswith("nothing was gained: evaluation loss 3.0000 before the first step, ")
        assert "train anew with train.lr=0.0001" in warning


def test_a_run_that_gets_worse_again_names_its_best() -> None:
    warning = str(worse_warning(RECIPE, figures(3.0, 4.0, 2.0, 5)))
    assert warning.startswith("the run ends worse than it began: evaluation loss 3.0000 before, 4.0000 after")
    assert "2.0000 at step 5, is what chat and evaluate open" in warning
    assert "train.steps=5" in warning


def test_a_run_at_rate_0_is_offered_the_methods_rate() -> None:
    recipe = load_recipe({"model": "m", "train": {"lr": 0}})
    assert "train.lr=0.0001" in str(worse_warning(recipe, figures(3.0, 3.0, 3.0, 1)))
