"""The comparison behind "nothing changed" sees one bit, and masks nothing but what may differ."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imsave
from safetensors.torch import load_file, save_file
from tools.same_outputs import compare_folders

STEP = {"step": 1, "loss": 1.25, "step_s": 0.5}
MERGED = "tiny/exports/lora-merged/model.safetensors"
COMPARED = """\
┃                      ┃ lora             ┃ ptuning         ┃
│ trainable parameters │ 12,288 (0.339 %) │ 4,096 (0.113 %) │
│ training time        │ 0:00:03          │ 0:00:03         │
│ steps/s              │ 1.24             │ -               │
│ peak memory          │ 0.61 GiB         │ 0.52 GiB        │
ptuning reaches lora's best evaluation loss (8.7058) 2.3 times faster: after 1 s in place of 3 s, at step 2 \
in place of 4
"""
LISTED = "lora                finished  2026-11-30 22:16\n    glm-tiny | lora r=4 | 4 steps | peak 0.61 GiB\n"
SETTINGS = """\
method.dropout 0.1 Dropout

data.train     empty Training rows
data.max_rows  empty Use only the first so many training rows
"""


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
    (folder / "memory.json").write_text(json.dumps({"limit": 1}), encoding="utf-8")
    (folder / "loss.png").write_bytes(b"\x89PNG\x00\x01")
    (folder / "last").symlink_to("step-000003")
    (folder / "compare-runs.out").write_text(COMPARED, encoding="utf-8")
    (folder / "runs-listed.out").write_text(LISTED, encoding="utf-8")
    (folder / "settings-all.out").write_text(SETTINGS, encoding="utf-8")
    imsave(folder / "compare.png", np.zeros((18, 20, 3)))
    return folder


def paint(row: int, column: int) -> Callable[[Path], None]:
    """A white pixel in the picture of a comparison."""

    def change(folder: Path) -> None:
        picture = np.zeros((18, 20, 3))
        picture[row, column] = 1
        imsave(folder / "compare.png", picture)

    return change


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
    "a pixel over the steps": paint(9, 9),
    "a pixel of a comparison's head": paint(1, 19),
    "the size of a picture": lambda folder: imsave(folder / "compare.png", np.zeros((18, 22, 3))),
    "a count in a table": rewrite("compare-runs.out", "12,288", "12,289"),
    "a time that is missing": rewrite("compare-runs.out", "0:00:03 ", "-       "),
    "the unit of a figure": rewrite("compare-runs.out", "0.61 GiB", "0.61 MiB"),
    "the name of a row": rewrite("compare-runs.out", "steps/s  ", "steps/min"),
    "the step of a lead": rewrite("compare-runs.out", "at step 2", "at step 1"),
    "the loss of a lead": rewrite("compare-runs.out", "8.7058", "8.7059"),
    "how a run ended": rewrite("runs-listed.out", "finished", "stopped"),
    "a run's steps": rewrite("runs-listed.out", "4 steps", "5 steps"),
    "how a date is written": rewrite("runs-listed.out", "2026-11-30 22:16", "30.11.2026"),
    "a setting's default": rewrite("settings-all.out", "0.1", "0.2"),
    "another objective": rewrite("recipe.yaml", "train:", "objective:\n  name: dpo\ntrain:"),
    "a new setting of another part": rewrite("settings-all.out", "data.train", "data.new 1 New\ndata.train"),
    "a link": relink,
    "a lost record of memory": lambda folder: (folder / "memory.json").unlink(),
    "a lost file": lambda folder: (folder / "eval.json").unlink(),
    "a new file": lambda folder: (folder / "more.txt").touch(),
}
ALLOWED = {
    "nothing": lambda folder: None,
    "times": rewrite("metrics.jsonl", "0.5", "0.7"),
    "a run's time": rewrite("eval.json", "3", "4"),
    "speed": rewrite("train.out", "3.10", "9.99"),
    "the new setting": rewrite("recipe.yaml", "train:", "objective:\n  name: sft\ntrain:"),
    "the objective's settings": rewrite(
        "settings-all.out", "data.train", "objective.name sft The loss\n\ndata.train"
    ),
    "more said of several files": rewrite(
        "settings-all.out",
        "first so many training rows\n",
        "first so many training rows, of several files…\n",
    ),
    "times in a table": rewrite(
        "compare-runs.out", "0:00:03          │ 0:00:03 ", "0:00:04          │ 0:01:03 "
    ),
    "a rate of more digits": rewrite("compare-runs.out", "1.24  ", "1,201 "),
    "memory": rewrite("compare-runs.out", "0.52", "0.53"),
    "memory in a list": rewrite("runs-listed.out", "0.61", "0.62"),
    "the record of memory": rewrite("memory.json", "1", "2"),
    "how much faster": rewrite(
        "compare-runs.out",
        "2.3 times faster: after 1 s in place of 3 s",
        "1.1 times slower: after 4 s in place of 3 s",
    ),
    "when a run ended": rewrite("runs-listed.out", "22:16", "23:17"),
    "a pixel over the time": paint(9, 10),
    "one unit of a merged weight": retensor(MERGED, lambda t: t["a"].view(torch.int32)[0].add_(1)),
}


@pytest.mark.parametrize("change", PLANTED.values(), ids=PLANTED)
def test_a_planted_difference_is_found(change: Callable[[Path], None], tmp_path: Path) -> None:
    before = write_outputs(tmp_path / "before")
    after = shutil.copytree(before, tmp_path / "after", symlinks=True)
    change(after)
    told = list(compare_folders(before, after))
    assert len({difference.partition(": ")[0] for difference in told}) == 1  # of one file


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_what_may_differ_is_not_told(change: Callable[[Path], None], tmp_path: Path) -> None:
    before = write_outputs(tmp_path / "before")
    after = shutil.copytree(before, tmp_path / "after", symlinks=True)
    change(after)
    assert list(compare_folders(before, after)) == []


def test_a_new_line_that_both_have_is_compared(tmp_path: Path) -> None:
    before = write_outputs(tmp_path / "before")
    rewrite("settings-all.out", "data.train", "objective.name sft The loss\n\ndata.train")(before)
    after = shutil.copytree(before, tmp_path / "after", symlinks=True)
    rewrite("settings-all.out", "The loss", "A loss")(after)
    assert len(list(compare_folders(before, after))) == 1
