"""memory.png: every part that is large enough is seen, whatever was measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from glmtune.reports.memory_picture import COLOURS, LIMIT_COLOUR, draw_memory, plot_memory

GIB = 2**30
PARTS = {
    "codes": 3 * GIB, "scales": GIB, "not quantised": GIB, "adapter": GIB, "gradients": GIB,
    "optimizer": 2 * GIB, "activations": 4 * GIB, "logits": GIB, "process": GIB, "bytes": 15 * GIB,
}  # fmt: skip
STEPS = [{"step": step, "loss": 1.0, "memory_gib": 12 + step / 10} for step in range(1, 9)]


def memory(**changed: Any) -> dict[str, Any]:
    return {"device": "cpu", "limit": 20 * GIB, "predicted": PARTS, "measured": PARTS, **changed}


def colours(path: Path) -> set[str]:
    pixels = (imread(path)[:, :, :3] * 255).round().astype(int)
    return {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}


def texts(**changed: Any) -> set[str]:
    figure = draw_memory(memory(**changed), STEPS, title="run")
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def test_all_parts_and_the_limit_are_seen(tmp_path: Path) -> None:
    plot_memory(memory(), STEPS, tmp_path / "memory.png", title="run")
    assert {COLOURS[name] for name in PARTS if name != "bytes"} | {LIMIT_COLOUR} <= colours(
        tmp_path / "memory.png"
    )


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ({}, []),
        ({"predicted": None}, STEPS),
        ({"measured": {"weights": 2**20, "process": 2**20, "bytes": 2**21}, "predicted": None}, []),
        ({"device": "cuda"}, [{"step": 1, "memory_gib": None}, {"step": 2, "memory_gib": 3.0}]),
        ({}, [{"step": 1, "loss": 2.0}]),
    ],
    ids=["no step yet", "nothing predicted", "a step 0", "a figure is missing", "an earlier version's"],
)
def test_whatever_is_known_is_drawn(tmp_path: Path, changed: dict[str, Any], steps: list[Any]) -> None:
    plot_memory(memory(**changed), steps, tmp_path / "memory.png", title="run")
    assert COLOURS["process"] in colours(tmp_path / "memory.png")


def test_each_bar_has_its_sum_above() -> None:
    assert "15" in texts(predicted=None)


def test_a_limit_far_above_is_told_in_words_and_flattens_nothing(tmp_path: Path) -> None:
    assert "available: 400 GiB" in texts(limit=400 * GIB)
    figure = draw_memory(memory(limit=400 * GIB), STEPS, title="run")
    assert figure.axes[0].get_ylim()[1] < 20


def test_a_cards_curve_stands_on_its_context() -> None:
    (on_cpu,), (on_card,) = (
        draw_memory(memory(device=device, limit=400 * GIB), STEPS, title="run").axes[1].lines
        for device in ("cpu", "cuda")
    )
    assert np.allclose(np.subtract(on_card.get_ydata(), on_cpu.get_ydata()), 1)
