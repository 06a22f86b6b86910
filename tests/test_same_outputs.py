"""The comparison behind "nothing changed" sees one bit, and masks nothing but what may differ."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tools.same_outputs import compare_folders

STEP = {"step": 1, "loss": 1.25, "step_s": 0.5}
MERGED = "tiny/exports/lora-merged/model.safetensors"


def write_outputs(folder: Path) -> Path:
    """One file of each kind that a run leaves."""
    (folder / "tiny/exports/lora-merged").mkdir(parents=True)
    weights = {"a": torch.tensor([1.0, -0.0, 3.0]), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    save_file(weights, folder / "adapter.safetensors")
    save_file(weights, folder / MERGED)
    torch.save({"optimizer": {0: weights["a"]}, "step": 3}, folder / "state.pt")
    (folder / "metrics.jsonl").write_text(json.dumps(STEP) + "\n", encoding="utf-8")
    (folder / "eval.json").write_text(json.dumps({"loss": 0.1, "train_s": 3}), encoding="utf-8")
    (folder / "recipe.yaml").write_text("model: a\ntrain:\n  lr: 0.1\n", encoding="utf-8")
    (folder / "train.out").write_text("loss: 1.25, speed: 3.10 step/s\n", encoding="utf-8")
    (folder / "loss.png").write_bytes(b"\x89PNG\x00\x01")
    (folder / "last").symlink_to("step-000003")
    return folder


def flip(name: str, at: int = -1) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 1
        (folder / name).write_bytes(content)

    return change


def rewrite(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return change


def retensor(name: str, change_it: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        change_it(tensors)
        save_file(tensors, folder / name)

    return change


def relink(folder: Path) -> None:
    (folder / "last").unlink()
    (folder / "last").symlink_to("step-000002")


def restate(folder: Path) -> None:
    torch.save({"optimizer": {0: torch.tensor([1.0, 0.0, 3.0])}, "step": 3}, folder / "state.pt")


PLANTED = {
    "a bit of a tensor": flip("adapter.safetensors"),
    "a tensor's type": retensor("adapter.safetensors", lambda t: t.update(b=t["b"].float())),
    "a tensor's name": retensor("adapter.safetensors", lambda t: t.update(c=t.pop("a"))),
    "the sign of a zero": restate,
    "two units of a merged weight": retensor(MERGED, lambda t: t["a"].view(torch.int32)[0].add_(2)),
    "a loss": rewrite("metrics.jsonl", "1.25", "1.2500000000000002"),
    "a figure": rewrite("eval.json", "0.1", "0.10000000000000002"),
    "the order of keys": rewrite("metrics.jsonl", '"step": 1, "loss": 1.25', '"loss": 1.25, "step": 1'),
    "a line of text": rewrite("train.out", "1.25", "1.26"),
    "a setting": rewrite("recipe.yaml", "0.1", "0.2"),
    "a pixel": flip("loss.png"),
    "a link": relink,
    "a lost file": lambda folder: (folder / "eval.json").unlink(),
    "a new file": lambda folder: (folder / "more.txt").touch(),
}
ALLOWED = {
    "nothing": lambda folder: None,
    "times": rewrite("metrics.jsonl", "0.5", "0.7"),
    "a run's time": rewrite("eval.json", "3", "4"),
    "speed": rewrite("train.out", "3.10", "9.99"),
    "the new setting": rewrite("recipe.yaml", "train:", "objective:\n  name: sft\ntrain:"),
    "one unit of a merged weight": retensor(MERGED, lambda t: t["a"].view(torch.int32)[0].add_(1)),
}


@pytest.mark.parametrize("change", PLANTED.values(), ids=PLANTED)
def test_a_planted_difference_is_found(change: Callable[[Path], None], tmp_path: Path) -> None:
    before = write_outputs(tmp_path / "before")
    after = shutil.copytree(before, tmp_path / "after", symlinks=True)
    change(after)
    assert len(list(compare_folders(before, after))) == 1


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_what_may_differ_is_not_told(change: Callable[[Path], None], tmp_path: Path) -> None:
    before = write_outputs(tmp_path / "before")
    after = shutil.copytree(before, tmp_path / "after", symlinks=True)
    change(after)
    assert list(compare_folders(before, after)) == []
