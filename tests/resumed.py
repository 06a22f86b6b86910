"""Runs that are stopped at a checkpoint and gone on with, and their weights beside those of another run."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from glmtune.recipe import Recipe
from glmtune.workflows.events import Saved, drain
from glmtune.workflows.execute import training


def train_in_parts(recipe: Recipe, *, stop: int) -> None:
    """Train until the checkpoint of a step is saved, stop, and resume."""
    interrupted = training(recipe)
    while not (isinstance(event := next(interrupted), Saved) and event.path.name == f"step-{stop:06d}"):
        pass
    interrupted.close()
    drain(training(recipe, resume=True))


def assert_same_weights(one: Path, other: Path) -> None:
    """Fail unless the last checkpoints of two runs hold the same numbers."""
    first, second = (
        {path.name: load_file(path) for path in sorted((run / "last").resolve().glob("*.safetensors"))}
        for run in (one, other)
    )
    assert first
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        assert tensors.keys() == second[name].keys()
        assert all(torch.equal(tensor, second[name][key]) for key, tensor in tensors.items())
