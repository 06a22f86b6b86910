"""loss.png: a whole picture or the old one, whatever the losses are."""

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glmtune.errors import OutputError
from glmtune.report.plots import BEST_COLOUR, EVALUATION_COLOUR, TRAINING_COLOUR, plot_loss

WIDTH, HEIGHT = 1200, 675


def run(num_steps: int, eval_every: int = 10) -> list[dict]:
    lines: list[dict] = [{"step": 0, "eval_loss": 4.0}]
    for step in range(1, num_steps + 1):
        lines.append({"step": step, "loss": 3 / step + math.sin(step) / 10, "lr": 1e-4})
        if step % eval_every == 0:
            lines.append({"step": step, "eval_loss": 3.2 / step})
    return lines


def size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def colours(path: Path) -> set[str]:
    """Colours of the pixels, so that a curve nobody can see does not pass."""
    from matplotlib.image import imread

    pixels = (imread(path)[:, :, :3] * 255).round().astype(int)
    codes = (pixels[:, :, 0] << 16) + (pixels[:, :, 1] << 8) + pixels[:, :, 2]
    return {f"#{code:06X}" for code in set(codes[:, : WIDTH // 2].ravel().tolist())}


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 1, "loss": 3.0}],
        [{"step": 0, "eval_loss": 3.0}],
        run(2),
        run(5000, 500),
        [{"step": 1, "loss": math.nan}, {"step": 2, "eval_loss": math.inf}, {"step": 3, "loss": None}],
        [{"step": step, "loss": math.nan if step % 3 else 2.0} for step in range(100)],
        [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0, "eval_loss": 2.0}],
    ],
    ids=["none", "one", "one evaluation", "two", "5000", "not finite", "some not finite", "both in a line"],
)
def test_any_metrics_give_a_png_of_the_same_size_and_nothing_else(tmp_path, metrics):
    plot_loss(metrics, tmp_path / "loss.png")
    assert size(tmp_path / "loss.png") == (WIDTH, HEIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_a_single_evaluation_can_be_seen(tmp_path):
    plot_loss([{"step": 0, "eval_loss": 3.0}, {"step": 8, "loss": 2.0}], tmp_path / "loss.png")
    assert BEST_COLOUR in colours(tmp_path / "loss.png")


def test_both_curves_and_the_best_evaluation_can_be_seen(tmp_path):
    plot_loss(
        [*run(30), {"step": 25, "eval_loss": 1.0}, {"step": 8, "eval_loss": 0.0}], tmp_path / "loss.png"
    )
    assert {TRAINING_COLOUR, EVALUATION_COLOUR, BEST_COLOUR} <= colours(tmp_path / "loss.png")


def test_a_step_run_again_replaces_its_first_run(tmp_path):
    once, twice = tmp_path / "once.png", tmp_path / "twice.png"
    plot_loss(run(20), once)
    plot_loss([{"step": 5, "loss": 99.0}, *run(20)], twice)
    assert once.read_bytes() == twice.read_bytes()


@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_full_disk_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "loss.png"
    plot_loss(run(5), path)
    before = path.read_bytes()

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_half(self: Path, content: bytes) -> None:
        with self.open("wb") as stream:
            stream.write(content[: len(content) // 2])
        fail()

    if call == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OutputError, match=r"loss\.png: cannot be written: No space left on device") as caught:
        plot_loss(run(9), path)
    assert caught.value.hint
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_plotting_needs_no_display_and_no_global_state(tmp_path):
    code = (
        "import sys; from pathlib import Path; from glmtune.report.plots import plot_loss;"
        "assert 'matplotlib' not in sys.modules;"
        "plot_loss([{'step': 1, 'loss': 2.0}], Path('loss.png'));"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
