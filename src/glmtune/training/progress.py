"""The progress line, with the percentage of the whole run and the time left.

Source of the format: HarderThenHarder/transformers_tasks, LLM/chatglm_finetune/train.py.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmtune.training.loop import StepLog  # loads torch


class Progress:
    """Turns the logs of training steps into lines."""

    def __init__(self, *, steps: int, steps_per_epoch: int) -> None:
        self.steps = steps
        self.steps_per_epoch = steps_per_epoch
        self._since: list[StepLog] = []

    def add(self, log: "StepLog") -> None:
        """Add the log of one step."""
        self._since.append(log)

    def line(self) -> str:
        """Return the line for the newest step; loss and speeds are means since the last line."""
        logs, self._since = self._since, []
        last, count = logs[-1], len(logs)
        seconds = sum(log.step_s for log in logs)
        tokens = sum(log.tokens_per_s * log.step_s for log in logs) / seconds
        return (
            f"global step {last.step} ( {100 * last.step / self.steps:.2f}% ) , "
            f"epoch: {math.ceil(last.step / self.steps_per_epoch)}, "
            f"loss: {sum(log.loss for log in logs) / count:.5f}, "
            f"speed: {count / seconds:.2f} step/s, "
            f"ETA: {clock_time((self.steps - last.step) * seconds / count)}, "
            f"tokens/s: {tokens:,.0f}, peak memory: {last.peak_memory_gib:.2f} GiB"
        )


def show_figures(logs: "Sequence[StepLog]", steps: int) -> tuple[str, ...]:
    """Return loss, time left, speed and memory for a progress bar, means of some steps; the loss first."""
    last, seconds = logs[-1], sum(log.step_s for log in logs)
    return (
        f"loss {sum(log.loss for log in logs) / len(logs):.4f}",
        f"{clock_time((steps - last.step) * seconds / len(logs))} left",
        f"{sum(log.tokens_per_s * log.step_s for log in logs) / seconds:,.0f} tokens/s",
        f"{last.peak_memory_gib:.2f} GiB",
    )


def clock_time(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds, `00:30:57`."""
    whole = round(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def run_time(seconds: float) -> str:
    """Format seconds as `174分 34秒`, the way the write-ups print `train run time:`."""
    whole = round(seconds)
    return f"{whole // 60:02d}分 {whole % 60:02d}秒"
