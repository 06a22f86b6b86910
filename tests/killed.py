"""Trains, is killed with SIGKILL, goes on, and says how what came out differs from a run that nobody killed.

Run by its path with a folder to work in, a seed, and how many kills: half of them before a file operation of
the run drawn at random (opening to write, renaming, linking, deleting), half at a moment drawn at random; of
each three, one is killed again while it goes on. Prints a line of JSON for each.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from glmtune.errors import GlmtuneError
from glmtune.models.reading import hash_tensor
from glmtune.recipe import load_recipe
from glmtune.run_files import find_checkpoint, is_partial, read_json_lines
from glmtune.training.state import STATE_FILE
from glmtune.workflows import train
from models import tiny_folder

ADVERTS = Path(__file__).parents[1] / "examples" / "adverts.jsonl"
METHODS = (
    ["method=lora", "train.lr=1"],  # the best is step 4's, then it gets worse; of the others each is the best
    ["method=ptuning", "method.num_prefix_tokens=4"],
    ["method=adalora", "method.init_r=4", "method.target_r=2"],
    ["method=full"],
)
CHANGES = ("os.rename", "os.symlink", "os.remove", "os.rmdir", "os.mkdir")
TIMES = {"tokens_per_s", "step_s", "peak_memory_gib", "memory_gib"}
KILLED = -signal.SIGKILL


def recipe(work: Path, output: Path, words: list[str]) -> Any:
    values = {
        "model": str(work / "model"),
        "output": output,
        "data": {"train": ADVERTS, "max_tokens": 200, "max_rows": 12, "holdout_rows": 2},
        "train": {"steps": 6, "batch_size": 2, "lr": 3e-2, "eval_every": 2, "save_every": 1},
        "samples": {"prompts": []},
    }
    return load_recipe(values, ["train.keep_checkpoints=1", *words])


def counting_changes(work: Path, at: float = 0) -> Callable[[], int]:
    """Count this process's changes of files from here on, and kill it before the `at`-th of them."""
    changes = 0

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal changes
        is_writing = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or (is_writing and str(work) in str(args[0])):
            changes += 1
            if at and changes >= at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    return lambda: changes


def in_child(
    work: Path, act: Callable[[], Any], *, at: float = 0, after_s: float = 0
) -> tuple[int, int, str]:
    """Run in a process of its own, killed before its `at`-th change of a file, or after so many seconds.

    Returns its exit status, how many changes it made, and the message of an error.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        message = ""
        random.seed(0)  # a fork draws a new seed
        changes = counting_changes(work, at)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            act()
        except GlmtuneError as err:
            message = str(err)
        os.write(write, json.dumps([changes(), message]).encode())
        os._exit(2 if message else 0)
    os.close(write)
    if after_s:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = os.read(read, 10_000)
    os.close(read)
    changes, message = json.loads(said) if said else (0, "")
    return status, changes, message


def spell(value: Any) -> str:
    """A state's values, whichever of them the file holds as one object."""
    if isinstance(value, torch.Tensor):
        return hash_tensor("", value)
    if isinstance(value, dict):
        return str({key: spell(inner) for key, inner in value.items()})
    return str([spell(inner) for inner in value]) if isinstance(value, list | tuple) else repr(value)


def hash_checkpoint(folder: Path) -> dict[str, str]:
    hashes = json.loads((folder / "glmtune.json").read_text(encoding="utf-8"))["files"]
    state = spell(torch.load(folder / STATE_FILE, weights_only=True))
    return {**hashes, STATE_FILE: hashlib.sha256(state.encode()).hexdigest()}


def left(folder: Path) -> dict[str, Any]:
    """All that a run is to have left: every file, the links, the figures, the hashes of its checkpoints."""
    return {
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        "links": {name: str((folder / name).readlink()) for name in ("best", "last")},
        "hashes": {path.name: hash_checkpoint(path) for path in (folder / "checkpoints").iterdir()},
        "figures": [
            {name: value for name, value in line.items() if name not in TIMES}
            for line in read_json_lines(folder / "metrics.jsonl")
        ],
        "answers": [
            {name: value for name, value in line.items() if name != "seconds"}
            for line in read_json_lines(folder / "samples.jsonl")
        ],
        "result": {
            name: value
            for name, value in json.loads((folder / "eval.json").read_text(encoding="utf-8")).items()
            if name not in {"train_s", "peak_memory_gib"}
        },
    }


def go_on(settings: Any, folder: Path) -> None:
    """As a user does: with --resume where there is a checkpoint; else anew, as the hint says."""
    if find_checkpoint(folder, "last") is None and (folder / "recipe.yaml").exists():
        shutil.rmtree(folder)
    train(settings, resume=(folder / "recipe.yaml").exists(), quiet=True)


def main(work: Path, seed: int, kills: int) -> None:
    draw = random.Random(seed)
    tiny_folder(work / "model", hidden_size=16, ffn_hidden_size=32)
    whole, folder = [], work / "killed"
    for number, words in enumerate(METHODS[:kills]):
        settings = recipe(work, work / f"whole-{number}", words)
        begun = time.perf_counter()
        status, changes, message = in_child(work, lambda settings=settings: train(settings, quiet=True))
        assert status == 0, message
        whole.append((changes, time.perf_counter() - begun, left(work / f"whole-{number}")))
    for number in range(kills):
        changes, seconds, expected = whole[number % len(METHODS)]
        settings = recipe(work, folder, METHODS[number % len(METHODS)])
        by_change = (number + number // len(METHODS)) % 2 == 0
        when = {"at": draw.randint(1, changes)} if by_change else {"after_s": draw.uniform(0.3, 1) * seconds}
        status = 0
        while status != KILLED:  # it may have come to its end before
            shutil.rmtree(folder, ignore_errors=True)
            status, _, message = in_child(work, lambda settings=settings: train(settings, quiet=True), **when)
            assert not message, message
            when = {name: value * 0.7 for name, value in when.items()}
        leftover = any(is_partial(path) for path in folder.rglob("*"))
        if number % 3 == 0:
            in_child(work, lambda settings=settings: go_on(settings, folder), at=draw.randint(1, changes))
        again, _, problem = in_child(work, lambda settings=settings: go_on(settings, folder))
        found = left(folder) if again == 0 else {"error": problem}
        odd = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        told = {name: [found.get(name), expected.get(name)] for name in odd}
        line = {**when, "leftover": leftover, "odd": told}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
