"""Kills runs with SIGKILL at random points, goes on with them, and compares what comes out with whole runs.

    python -m tests.crash --kills 1000
    python -m tests.crash --kills 100 --method adalora --seed 7

Each run is forked from a process that has loaded all there is to load. It is killed before a change of a file
drawn at random (also while a checkpoint is being saved) or at a moment drawn at random, gone on with, killed
again, until it comes to its end. Then its figures, its weights, its optimizer's state and its files must be
those of a run that nobody killed, to the bit. After every kill each checkpoint that is there must be whole.
Pictures are blank, for drawing takes longer than training here; tests/killed.py kills runs that draw. Prints
one JSON object; exit code 1 if anything was otherwise.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))  # as pytest has it

from conftest import BLANKS, DRAWN
from glmtune.adapters.card import read_card
from glmtune.adapters.origin import require_files
from glmtune.errors import GlmtuneError
from glmtune.run_files import is_partial, list_checkpoints, read_json_lines
from glmtune.training.state import read_state
from glmtune.workflows import train
from killed import KILLED, METHODS, in_child, left, recipe
from models import tiny_folder

QUIET = ["samples.built_in=false", "retain.report=off", "retain.ratio=0"]
MOST_KILLS = 6
"""Kills of one run; then it is let come to its end."""
EVAL_EVERY = 2
"""Of `killed.recipe`."""


@dataclass
class Tally:
    """What has come of the kills so far."""

    kills: int = 0
    runs: int = 0
    during: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)


def half_readable(folder: Path) -> list[str]:
    """The checkpoints with a name that cannot be read as they were saved."""
    found = []
    for path in list_checkpoints(folder):
        try:
            card = read_card(path)
            assert card, path
            require_files(path, card)
            read_state(path, step=card.step)
        except (AssertionError, GlmtuneError) as err:
            found.append(f"{path.name}: {err}")
    return found


def activity(folder: Path) -> str:
    """What a run was killed in, as its files tell."""
    if any(is_partial(path) for path in folder.rglob("*") if "checkpoints" in path.parts):
        return "saving"
    lines = read_json_lines(folder / "metrics.jsonl")
    if lines and "loss" in lines[-1] and lines[-1]["step"] % EVAL_EVERY == 0:
        return "evaluating"
    return "stepping" if list_checkpoints(folder) else "before the first checkpoint"


def go_on(settings: Any, folder: Path) -> None:
    """Begin the run, or go on with it where there is a checkpoint."""
    if not list_checkpoints(folder):
        shutil.rmtree(folder, ignore_errors=True)
    train(settings, resume=folder.exists(), quiet=True)


def warm_up(work: Path) -> None:
    """Train once in this process: what a run loads on its way, its forks have loaded then."""
    torch.set_num_threads(1)  # a pool of threads does not live on in a fork
    for module, name in DRAWN:
        setattr(module, name, BLANKS.get(name, lambda *_, **__: None))
    train(recipe(work, work / "warm", ["method=lora", "train.steps=1", *QUIET]), quiet=True)


def crash(work: Path, names: list[str], kills: int, seed: int) -> dict[str, Any]:
    """Kill so often; return the figures."""
    draw, tally, since = random.Random(seed), Tally(), time.monotonic()
    tiny_folder(work / "model", hidden_size=16, ffn_hidden_size=32)
    warm_up(work)
    words = {part[0].removeprefix("method="): [*part, *QUIET] for part in METHODS}
    whole: dict[str, tuple[int, float, Any]] = {}
    for name in names:
        settings, begun = recipe(work, work / f"whole-{name}", words[name]), time.monotonic()
        status, changes, message = in_child(work, lambda settings=settings: train(settings, quiet=True))
        assert status == 0, message
        print(f"{name}: whole in {time.monotonic() - begun:.1f} s", file=sys.stderr)
        whole[name] = (changes, time.monotonic() - begun, left(work / f"whole-{name}"))
    folder = work / "killed"
    while tally.kills < kills:
        name = names[tally.runs % len(names)]
        changes, seconds, expected = whole[name]
        settings = recipe(work, folder, words[name])
        shutil.rmtree(folder, ignore_errors=True)
        status, so_far = KILLED, 0
        while status == KILLED:
            when: dict[str, float] = {}
            if so_far < MOST_KILLS and tally.kills < kills:
                by_change = draw.random() < 0.7
                when = {"at": draw.randint(1, changes)} if by_change else {"after_s": draw.random() * seconds}
            status, _, message = in_child(work, lambda settings=settings: go_on(settings, folder), **when)
            if status == KILLED:
                tally.kills, so_far = tally.kills + 1, so_far + 1
                tally.during[activity(folder)] += 1
                tally.odd += [f"{name}: {problem}" for problem in half_readable(folder)]
        tally.runs += 1
        found = left(folder) if status == 0 else {"error": message}
        tally.odd += [
            f"{name}: {key}: {found.get(key)}, not {expected.get(key)}"
            for key in {**expected, **found}
            if found.get(key) != expected.get(key)
        ]
        print(
            f"{time.monotonic() - since:.0f} s: {tally.kills} kills, {tally.runs} runs, {len(tally.odd)} odd",
            file=sys.stderr,
        )
    return {
        "kills": tally.kills,
        "runs": tally.runs,
        "methods": names,
        "seed": seed,
        "seconds": round(time.monotonic() - since),
        "during": dict(tally.during),
        "odd": tally.odd,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    known = [part[0].removeprefix("method=") for part in METHODS]
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--method", choices=known)
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = crash(Path(work), [given.method] if given.method else known, given.kills, given.seed)
    print(json.dumps(found, ensure_ascii=False))
    sys.exit(bool(found["odd"]))


if __name__ == "__main__":
    main()
