"""The runs of the forgetting experiments; each is a line of results/forgetting/runs.jsonl, and made once.

`grid`: rate x epochs x rank x targets x replay on glm-tiny. `verdict`: every method, from too little to far
too much, on three bases: does the divergence predict the real drop? `identity`: a dozen rows for hundreds of
epochs. `ways`: protections side by side. `default`: LoRA where nothing is set. `front`: on the 20 M
model, the best of the grid by halving.

    python -m benchmarks.forgetting_runs grid --minutes 30    # goes on where it stopped
    python -m benchmarks.forgetting_runs verdict --base twenty-million
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import measure, methods
from benchmarks.forgetting import RESULT, Base, Facts, answer_for_replay, run, untuned
from benchmarks.forgetting_bases import BASES
from benchmarks.twenty_million import NUM_TASK
from glmtune.run_files import read_json_lines

ALL_LINEAR, ALL_LINEAR_SET = methods.ALL_LINEAR, "all_linear"
Case = tuple[str, str, Facts]
"""Name, task, settings."""


def _lora(r: int, targets: list[str] | None) -> Facts:
    return {"name": "lora", "r": r, **({"target_modules": targets} if targets else {})}


def grid(_: Base, seeds: int) -> Iterator[Case]:
    """Rate x epochs x rank x targets x replay; seed after seed, so that a part of it is a whole grid."""
    choices = itertools.product(
        range(1, seeds + 1), (0.0, 0.1), (1e-3, 3e-3, 1e-2), (1, 4), (2, 16), (None, ALL_LINEAR)
    )
    for seed, ratio, lr, epochs, r, targets in choices:
        kind = "all" if targets else "attention"
        name = f"lr={lr:g} epochs={epochs} r={r} {kind} replay={ratio:g} seed={seed}"
        train = {"lr": lr, "epochs": epochs, "seed": seed}
        yield (
            name,
            "facts",
            {
                "method": _lora(r, targets),
                "train": train,
                "retain": {"ratio": ratio, "max_new_tokens": MOST_NEW},
            },
        )


VERDICT: Sequence[tuple[Facts, Sequence[float]]] = (
    ({"name": "lora"}, (1e-3, 3e-3, 1e-2, 3e-2)),
    ({"name": "lora", "target_modules": ALL_LINEAR, "r": 16}, (3e-4, 1e-3, 3e-3, 1e-2)),
    ({"name": "ptuning", "num_prefix_tokens": 16}, (2e-3, 2e-2, 1e-1)),
    ({"name": "full"}, (1e-4, 3e-4, 1e-3)),
    ({"name": "freeze", "num_layers": 1}, (1e-3, 5e-3)),
)


FEW = 96
"""Rows of the tasks of `verdict`, at most: it is to tell a drop, however it came about."""


def verdict(base: Base, seeds: int) -> Iterator[Case]:
    """Methods from rates that do nothing to those that ruin, few and many epochs."""
    tasks = sorted(base.tasks.keys() - {"identity"})
    for seed, epochs, (method, rates), task in itertools.product(range(1, seeds + 1), (1, 8), VERDICT, tasks):
        kind = f"{method['name']}{' all' if 'target_modules' in method else ''}"
        for lr in rates:
            train = {"lr": lr, "epochs": epochs, "seed": seed}
            name = f"{task} {kind} lr={lr:g} epochs={epochs} seed={seed}"
            facts = {"method": method, "train": train, "retain": {"ratio": 0}, "max_rows": FEW}
            yield name, task, facts


WAYS: dict[str, Facts] = {
    "none": {"ratio": 0},
    **{f"replay {ratio:g}": {"ratio": ratio} for ratio in (0.1, 0.3, 0.5)},
    **{f"answers {ratio:g}": {"ratio": ratio, "targets": "answers"} for ratio in (0.1, 0.3)},
    "strength 0.7": {"ratio": 0},
    **{f"kl {weight:g}": {"ratio": 0, "kl": weight} for weight in (0.3, 1.0)},
    "replay 0.1, kl 0.3": {"ratio": 0.1, "kl": 0.3},
    **{way: {"ratio": 0} for way in ("EAFT", "likely tokens")},
    **{f"replay 0.1 x {factor}": {"ratio": 0.1} for factor in (3, 10, 30)},
}
"""Protections side by side, by their names."""

TOKENS = {
    "EAFT": "entropy",
    "likely tokens": "likely",
    **{f"replay 0.1 x {factor}": f"replay x {factor}" for factor in (3, 10, 30)},
}
"""Those that weight single tokens, and their names in token_weights.py."""


def ways(base: Base, seeds: int) -> Iterator[Case]:
    """Protections of a run that forgets without any, on each task."""
    for seed, task, (name, retain) in itertools.product(range(1, seeds + 1), LEARNING, WAYS.items()):
        if task in base.tasks:
            train = {**LEARNING[task], "seed": seed}
            method = {"name": "lora", "target_modules": ALL_LINEAR}
            facts = {"method": method, "train": train, "retain": {**retain, "max_new_tokens": MOST_NEW}}
            if name.startswith("strength "):
                facts["strength"] = float(name.removeprefix("strength "))
            if name in TOKENS:
                facts["token_weights"] = TOKENS[name]
            yield f"{task} {name} seed={seed}", task, facts


LEARNING: dict[str, Facts] = {"identity": {"lr": 3e-3, "epochs": 40}, "adverts": {"lr": 3e-3, "epochs": 4}}
"""Rate and epochs that learn a task."""


def default(base: Base, seeds: int) -> Iterator[Case]:
    """LoRA as it is where nothing is set, three epochs, with the replay that is the default and without."""
    tasks = [task for task in LEARNING if task in base.tasks]
    for seed, task in itertools.product(range(1, seeds + 1), tasks):
        for way in ("none", "replay 0.1"):
            train = {"epochs": 3, "seed": seed}
            retain = {**WAYS[way], "max_new_tokens": MOST_NEW}
            yield f"{task} {way} seed={seed}", task, {"method": "lora", "train": train, "retain": retain}


def identity(_: Base, seeds: int) -> Iterator[Case]:
    """A dozen identity rows for hundreds of epochs, P-Tuning at its published rate."""
    for seed in range(1, seeds + 1):
        method = {"name": "ptuning", "num_prefix_tokens": 128}
        train = {"lr": 2e-2, "epochs": 300, "batch_size": 12, "micro_batch_size": 12, "seed": seed}
        yield f"ptuning seed={seed}", "identity", {"method": method, "train": train, "retain": {"ratio": 0}}


FEW_ROWS, NUM_BEST = 125, 2
"""Of `front`: training rows of the first round, and the number of settings that go on to all rows."""


def front(_: Base, seeds: int) -> Iterator[Case]:
    """Rate x targets by successive halving, then replay: 8 settings on few rows, the best on all.

    These, and what holds where nothing is set, are made without replay and with it, and with every seed:
    26 runs with three of them.
    """
    choices = itertools.product((3e-4, 1e-3, 3e-3, 1e-2), ("attention", ALL_LINEAR_SET), (0.0,))
    left = list(choices)
    yield from (_front_case(choice, FEW_ROWS, 1) for choice in left)
    best = [UNSET, *((lr, targets) for lr, targets, _ in _best(left, FEW_ROWS, NUM_BEST))]
    for seed, (lr, targets), ratio in itertools.product(range(1, seeds + 1), best, (0.0, 0.1)):
        yield _front_case((lr, targets, ratio), NUM_TASK, seed)


Choice = tuple[float, str, float]
"""Rate, targets and replay."""
UNSET = (1e-4, "attention")
"""Rate and targets of LoRA where nothing is set."""


def _front_case(choice: Choice, rows: int, seed: int) -> Case:
    lr, targets, ratio = choice
    facts = {
        "method": {"name": "lora", "target_modules": targets},
        "train": {"lr": lr, "epochs": 1, "seed": seed},
        "retain": {"ratio": ratio, "max_new_tokens": MOST_NEW},
        "max_rows": rows,
    }
    return f"lr={lr:g} {targets} replay={ratio:g} rows={rows} seed={seed}", "adverts", facts


def _best(choices: Sequence[Choice], rows: int, number: int) -> list[Choice]:
    """Those that the fewest others beat in both, task loss and divergence."""
    made = {line["name"]: line for line in read_json_lines(RESULT) if line["kind"] == "front"}
    found = {choice: made[_front_case(choice, rows, 1)[0]] for choice in choices}

    def beaten(choice: Choice) -> tuple[int, float]:
        own = found[choice]
        better = [x for x in found.values() if all(x[key] < own[key] for key in ("task_loss", "kl"))]
        return len(better), own["task_loss"]

    return sorted(choices, key=beaten)[:number]


CASES = {
    "grid": grid,
    "verdict": verdict,
    "ways": ways,
    "identity": identity,
    "front": front,
    "default": default,
}


MOST_NEW = 48
"""Longest answer in the replay of a run."""


def make(base: Base, kind: str, cases: Iterator[Case], options: argparse.Namespace) -> None:
    """Make the runs that are not there yet, until the minutes are over."""
    kept = read_json_lines(RESULT) if RESULT.exists() else []
    done = {(line["base"], line["kind"], line["name"]) for line in kept}
    end = time.monotonic() + 60 * options.minutes
    os.environ["GLMTUNE_CACHE"] = str(options.work / "answers")
    if kind != "verdict":
        answer_for_replay(base, MOST_NEW)
    for name, task, settings in cases:
        if options.only not in name or (base.name, kind, name) in done:
            continue
        if time.monotonic() > end:
            return
        _keep({"base": base.name, "kind": kind, "name": name, "task": task, **settings,
               **run(base, task, settings, options.work)}, options)  # fmt: skip


def _keep(facts: Facts, options: argparse.Namespace) -> None:
    line = json.dumps(_rounded(facts), ensure_ascii=False)
    print(line, flush=True)
    if not options.dry:
        with RESULT.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _rounded(value: Any) -> Any:
    """Five digits of every figure."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value


def main(words: Sequence[str] | None = None) -> None:
    """Make the runs of a kind that are not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=(*CASES, "untuned"))
    parser.add_argument("--base", choices=BASES, default="glm-tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="runs whose name contains it")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so many")
    options = measure.parse(parser, words)
    measure.begin("forgetting", "", options)
    base = BASES[options.base](options.work)
    if options.kind == "untuned":
        _keep({"base": base.name, "kind": "untuned", "name": "", "tasks": untuned(base)}, options)
    else:
        make(base, options.kind, CASES[options.kind](base, options.seeds), options)


if __name__ == "__main__":
    main()
