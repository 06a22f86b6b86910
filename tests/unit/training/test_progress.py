"""Progress lines."""

import pytest

from glmtune.training.loop import StepLog
from glmtune.training.progress import Progress, clock_time, run_time


def log(step: int, loss: float, step_s: float = 0.5) -> StepLog:
    return StepLog(
        step,
        loss,
        1.0,
        1e-4,
        tokens=100,
        tokens_per_s=400.0,
        step_s=step_s,
        peak_memory_gib=6.7,
        memory_gib=6.5,
    )


def test_the_line_has_the_published_form_with_speed_and_memory_added() -> None:
    progress = Progress(steps=3000, steps_per_epoch=6)
    for step in range(1, 101):
        progress.add(log(step, 0.79312))
    assert progress.line() == (
        "global step 100 ( 3.33% ) , epoch: 17, loss: 0.79312, speed: 2.00 step/s, ETA: 00:24:10, "
        "tokens/s: 400, peak memory: 6.70 GiB"
    )


def test_loss_and_speed_are_means_since_the_line_before() -> None:
    progress = Progress(steps=10, steps_per_epoch=10)
    progress.add(log(1, 9.0, step_s=9.0))
    progress.line()
    progress.add(log(2, 1.0))
    progress.add(log(3, 2.0))
    assert "loss: 1.50000, speed: 2.00 step/s" in progress.line()


def test_the_last_line_is_at_100_percent_with_no_time_left() -> None:
    progress = Progress(steps=10, steps_per_epoch=5)
    progress.add(log(10, 1.0))
    line = progress.line()
    assert "( 100.00% )" in line
    assert "epoch: 2," in line
    assert "ETA: 00:00:00" in line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00:00"), (1857.4, "00:30:57"), (7575, "02:06:15"), (360000, "100:00:00")]
)
def test_time_left_reads_as_hours_minutes_seconds(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_run_time_reads_as_the_write_ups_print_it() -> None:
    assert run_time(174 * 60 + 34) == "174分 34秒"
    assert run_time(9 * 60 + 22) == "09分 22秒"
