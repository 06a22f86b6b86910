"""The runs of the forgetting experiments; each is kept as a line of results/forgetting.jsonl, and made once.

`grid`: rate x epochs x rank x targets x replay on glm-tiny. `verdict`: every method, from too little to far
too much, on three bases: does the divergence predict the real drop? `identity`: a dozen rows for hundreds of
epochs. `ways`: protections side by side. `front`: on the 20 M model, the best of the grid by halving.

    python -m benchmarks.forgetting_runs grid --minutes 30    # goes on where it stopped
    python -m benchmarks.forgetting_runs verdict --base twenty-million
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.glm_tiny import corpus

from benchmarks import measure, methods
from benchmarks.forgetting import RESULT, Base, Facts, run, untuned
from benchmarks.twenty_million import NAME as TWENTY_MILLION
from benchmarks.twenty_million import write_rows
from glmtune.run_files import read_json_lines

EXAMPLES = Path("examples")
NAMED = {"{{name}}": "晴空", "{{author}}": "晴空小组"}
ALL_LINEAR = methods.ALL_LINEAR
Case = tuple[str, str, Facts]
"""Name, task, settings."""


def _identity(name: str) -> list[Facts]:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    for mark, word in NAMED.items():
        text = text.replace(mark, word)
    rows: list[Facts] = json.loads(text)
    return rows


def glm_tiny(work: Path) -> Base:
    """glm-tiny; general rows are those held out of its own training, but adverts, identity and talks."""
    folder = work / "glm-tiny-rows"
    rows = {
        "identity": _identity("identity.json")[:12],
        "identity_test": _identity("identity_heldout.json"),
        "adverts": read_json_lines(EXAMPLES / "adverts.jsonl")[:96],
        "adverts_test": read_json_lines(EXAMPLES / "adverts_heldout.jsonl"),
        "facts": methods.invented_facts(),
        "facts_test": methods.invented_facts(),
        "general": [
            row.as_json() for row in corpus.make()[1] if row.kind not in ("advert", "identity", "helpdesk")
        ],
    }
    for name, found in rows.items():
        write_rows(folder / f"{name}.jsonl", found)
    tasks = {
        name: (folder / f"{name}.jsonl", folder / f"{name}_test.jsonl")
        for name in ("identity", "adverts", "facts")
    }
    return Base("glm-tiny", "glm-tiny", folder / "general.jsonl", tasks)


def twenty_million(work: Path) -> Base:
    """The 20 M model of benchmarks.twenty_million."""
    folder = work / TWENTY_MILLION
    tasks = {"adverts": (folder / "task.jsonl", folder / "task_test.jsonl")}
    model, general = str(folder / TWENTY_MILLION), folder / "general_heldout.jsonl"
    return Base(TWENTY_MILLION, model, general, tasks)


BASES: dict[str, Callable[[Path], Base]] = {"glm-tiny": glm_tiny, TWENTY_MILLION: twenty_million}


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
        yield name, "facts", {"method": _lora(r, targets), "train": train, "retain": {"ratio": ratio}}


VERDICT: Sequence[tuple[Facts, Sequence[float]]] = (
    ({"name": "lora"}, (1e-3, 3e-3, 1e-2, 3e-2)),
    ({"name": "lora", "target_modules": ALL_LINEAR, "r": 16}, (3e-4, 1e-3, 3e-3, 1e-2)),
    ({"name": "ptuning", "num_prefix_tokens": 16}, (2e-3, 2e-2, 1e-1)),
    ({"name": "full"}, (1e-4, 3e-4, 1e-3)),
    ({"name": "freeze", "num_layers": 1}, (1e-3, 5e-3)),
)


def verdict(base: Base, seeds: int) -> Iterator[Case]:
    """Methods from rates that do nothing to those that ruin, few and many epochs."""
    for seed, epochs, (method, rates), task in itertools.product(
        range(1, seeds + 1), (1, 8), VERDICT, sorted(base.tasks.keys() - {"identity"})
    ):
        kind = f"{method['name']}{' all' if 'target_modules' in method else ''}"
        for lr in rates:
            train = {"lr": lr, "epochs": epochs, "seed": seed}
            name = f"{task} {kind} lr={lr:g} epochs={epochs} seed={seed}"
            yield name, task, {"method": method, "train": train, "retain": {"ratio": 0}}


CASES = {"grid": grid, "verdict": verdict}


def make(base: Base, kind: str, cases: Iterator[Case], options: argparse.Namespace) -> None:
    """Make the runs that are not there yet, until the minutes are over."""
    kept = read_json_lines(RESULT) if RESULT.exists() else []
    done = {(line["base"], line["kind"], line["name"]) for line in kept}
    end = time.monotonic() + 60 * options.minutes
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
