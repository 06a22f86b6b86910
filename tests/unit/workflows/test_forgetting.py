"""The warning before the start, against the runs of which it is known whether ordinary chat was lost."""

import pytest

from glmtune.data.batches import Steps
from glmtune.recipe import AdaLora, Freeze, Full, Lora, Method, Ptuning, load_recipe
from glmtune.workflows.demo import SETTINGS
from glmtune.workflows.forgetting import chat_loss_warning, cures
from glmtune.workflows.plan import plan_warning
from models import random_rows

ADGEN = 114_599
"""Its training rows."""

LOST = {
    "P-Tuning, 2000 steps on two cards, 64 epochs of the advised 1000 rows": (
        Ptuning(),
        1000,
        32,
        2000,
        2e-2,
    ),
    "P-Tuning, 500 epochs of 12 rows": (Ptuning(), 12, 1, 6000, 2e-4),
    "the same on two cards": (Ptuning(), 12, 2, 3000, 2e-4),
    "P-Tuning on 1000 conversations as in train_chat.sh": (Ptuning(), 1000, 16, 3000, 1e-2),
    "LoRA, 250 epochs of 12 rows": (Lora(r=4), 12, 2, 1500, 2e-4),
    "LoRA the same on two cards": (Lora(r=4), 12, 4, 700, 2e-4),
    "AdaLoRA, 50 epochs of few rows": (AdaLora(), 100, 16, 350, 5e-3),
    "every weight, 16 epochs of 1200 rows": (Full(), 1200, 16, 1200, 5e-5),
    "P-Tuning's rate with LoRA": (Lora(), ADGEN, 16, 3000, 2e-2),
    "P-Tuning's rate with every weight": (Full(), ADGEN, 16, 3000, 2e-2),
}
KEPT = {
    "P-Tuning on ADGEN as published": (Ptuning(), ADGEN, 16, 3000, 2e-2),
    "P-Tuning on ADGEN at 1e-4": (Ptuning(), ADGEN, 16, 3000, 1e-4),
    "LoRA on ADGEN as published": (Lora(), ADGEN, 16, 3000, 5e-4),
    "every weight on ADGEN as published": (Full(), ADGEN, 16, 5000, 1e-4),
    "ChatGLM3's lora.yaml": (Lora(), ADGEN, 4, 3000, 5e-5),
    "LoRA, an epoch of Alpaca": (Lora(), 26_858, 32, 840, 1e-4),
    "liucongg's Freeze": (Freeze(), 1400, 4, 700, 1e-4),
    "liucongg's LoRA": (Lora(), 1400, 4, 700, 1e-4),
    "liucongg's P-Tuning": (Ptuning(), 1400, 4, 700, 1e-4),
    "identity, 20 epochs of 100 rows": (Lora(), 100, 16, 140, 1e-4),
    "rate 0": (Lora(), 10, 1, 1000, 0.0),
}
Plan = tuple[Method, int, int, int, float]


def warning(plan: Plan) -> str | None:
    method, rows, batch_size, steps, lr = plan
    epochs = steps / -(-rows // batch_size)
    return chat_loss_warning(method, rows=rows, steps=steps, epochs=epochs, lr=lr, ratio=0)


@pytest.mark.parametrize("name", LOST)
def test_a_plan_like_one_that_lost_chat_is_warned_of(name: str) -> None:
    assert "lost ordinary chat; set train." in (warning(LOST[name]) or "")


@pytest.mark.parametrize("name", KEPT)
def test_a_plan_like_one_that_kept_chat_is_not(name: str) -> None:
    assert warning(KEPT[name]) is None


@pytest.mark.parametrize("name", LOST)
def test_what_the_warning_says_to_paste_takes_the_plan_back_into_bounds(name: str) -> None:
    method, rows, batch_size, steps, lr = LOST[name]
    words = (warning(LOST[name]) or "").replace(",", " ").split()
    lower = next(float(word.removeprefix("train.lr=")) for word in words if word.startswith("train.lr="))
    assert lower < lr
    assert warning((method, rows, batch_size, steps, lower)) is None
    if "train.epochs=2" in words:
        fewer = 2 * -(-rows // batch_size)
        assert warning((method, rows, batch_size, fewer, lr)) is None


def test_the_demos_settings_are_not_warned_of() -> None:
    rows = random_rows(650)  # about as many as its examples
    recipe = load_recipe({**SETTINGS, "model": "glm-tiny"})
    steps = Steps(rows, batch_size=recipe.train.batch_size, micro_batch_size=32, seed=1)
    num_steps = int(recipe.train.epochs or 0) * steps.per_epoch
    assert plan_warning(recipe.method, recipe.train.lr or 0.0, steps, num_steps) is None


def test_several_processes_change_nothing_about_a_plan() -> None:
    one, second = (
        Steps(random_rows(12), batch_size=2, micro_batch_size=1, seed=1, rank=rank, num_processes=processes)
        for rank, processes in ((0, 1), (1, 2))
    )
    assert plan_warning(Lora(), 2e-4, one, 1500) == plan_warning(Lora(), 2e-4, second, 1500)
    assert (plan_warning(Lora(), 2e-4, one, 1500) or "").startswith("250 epochs of 12 rows at rate 0.0002: ")


@pytest.mark.parametrize(
    ("ratio", "advice"), [(0, "retain.ratio=0.1"), (0.1, "retain.ratio=0.2"), (0.5, None), (None, None)]
)
def test_more_replay_than_a_run_has_is_advised(ratio: float | None, advice: str | None) -> None:
    warning = chat_loss_warning(Lora(), rows=12, steps=1500, epochs=250, lr=2e-4, ratio=ratio)
    assert warning is not None
    assert warning.endswith(
        f", or {advice}: docs/forgetting.md" if advice else "train.lr=6e-05: docs/forgetting.md"
    )


@pytest.mark.parametrize(
    ("ratio", "advised"),
    [(0, "retain.ratio=0.1"), (0.1, "retain.ratio=0.2"), (0.4, "retain.ratio=0.5"), (0.5, "train.lr=1e-05")],
)
def test_more_replay_is_advised_first_up_to_half_of_an_epoch(ratio: float, advised: str) -> None:
    recipe = load_recipe({"model": "base", "data": {"train": "rows.json"}, "retain": {"ratio": ratio}})
    assert cures(recipe, lr=1e-4, epochs=3) == advised
