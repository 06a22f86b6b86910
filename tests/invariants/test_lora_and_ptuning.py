"""At the same rate and steps LoRA's loss falls far faster than P-Tuning's, as the write-ups report."""

from pathlib import Path

import pytest

from glmtune.recipe import load_recipe
from glmtune.report.run import read_run
from glmtune.workflows.training import drain, training

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
STEPS = 30


@pytest.mark.slow
def test_loras_loss_is_far_below_ptunings_at_equal_steps(tmp_path: Path) -> None:
    """glm-tiny, the example rows, both at 2e-4."""
    falls = {}
    for method in ("lora", "ptuning"):
        values = {
            "model": "glm-tiny",
            "dtype": "fp32",
            "output": tmp_path / method,
            "method": method,
            "data": {"train": ADVERTS, "max_source_tokens": 64, "max_target_tokens": 64},
            "train": {"steps": STEPS, "batch_size": 8, "micro_batch_size": 8, "lr": 2e-4},
            "samples": {"prompts": []},
        }
        drain(training(load_recipe(values)))
        run = read_run(tmp_path / method)
        falls[method] = run.evaluation[0] - run.evaluation[STEPS]
        print(method, run.evaluation, run.loss_at(STEPS))
    assert falls["lora"] > 10 * falls["ptuning"]
