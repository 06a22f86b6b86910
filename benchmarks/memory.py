"""The forecast of a run's memory beside what the run then took, a process of its own for each case.

A case trains random weights as `glmtune train` does, two steps on rows of one length. What a process holds
that has planned it, and has trained glm-tiny before, is interpreter and libraries: it counts on neither side.
Figures in MiB:
- `phases`: the forecast by part, and what of it are pages of the model's files (`mapped`), which the system
  may drop;
- `measured`: the most anonymous memory, looked at every 3 ms, by what the process was doing: what is not
  pages of files. `loading` and what the base is asked count apart: then passes of several rows show what
  steps need, for which no more is taken than half of what is free. Only the last runs have a report of
  forgetting, with all prompts however short the run is.

The cases are those of memory_cases.py: pairs of method, bits, length and recomputation, and every method on
glm-tiny and on one larger model. Three of the runs are then evaluated and exported. Each case is kept in
results/memory.json as soon as it is done; `python -m tools.memory_tables` writes the tables of
docs/results.md.

    python -m benchmarks.memory                          # half an hour on two idle cores
    python -m benchmarks.memory --case "lora int4"       # cases whose name contains it
    python -m benchmarks.memory --missing                # cases that have no figures yet
    python -m benchmarks.memory --again                  # new forecasts beside what was measured
    python -m benchmarks.memory --shape test --dry       # shows that it runs
"""

import argparse
import json
import resource
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from psutil import Process

from benchmarks import measure, models
from benchmarks.measure import Record
from benchmarks.memory_cases import CASES, GLM_TINY, METHODS, ROWS, Case
from benchmarks.train_models import find_rows, make_chatglm3, make_glm4
from benchmarks.trainers import MIB, anonymous_bytes, resting_bytes
from glmtune.log import quiet
from glmtune.recipe import load_recipe
from glmtune.recipe.parse import RecipeSource
from glmtune.training.allocations import tighten_heap
from glmtune.workflows import report_forgetting
from glmtune.workflows.evaluating import evaluating
from glmtune.workflows.events import Evaluated, Saved, Working, drain
from glmtune.workflows.execute import training
from glmtune.workflows.exporting import Order, exporting
from glmtune.workflows.forecast import Forecast, forecast, this_machine
from glmtune.workflows.plan import planning

Facts = dict[str, Any]
RESULT = measure.RESULTS / "memory.json"
STEPS = 2
LOOK_S = 0.003
BEFORE_PASSES = ("timing answers to general prompts", "asking the base")


@dataclass
class Watch:
    """The most anonymous memory so far, by what the process is doing; looks from a thread of its own."""

    doing: str = "loading"
    peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look until the block ends."""
        self._look()
        done = threading.Event()

        def look() -> None:
            while not done.wait(LOOK_S):
                self._look()

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _look(self) -> None:
        doing, found = self.doing, anonymous_bytes()  # `doing` may be another by the time that is read
        self.peaks[doing] = max(self.peaks.get(doing, 0), found)


def write_rows(path: Path, number: int, length: int) -> None:
    """Rows of Chinese text whose questions and answers both have more tokens than `length`."""
    text = find_rows().train.read_text(encoding="utf-8")
    width = 4 * length  # characters: more than as many tokens hold
    starts = range(0, 2 * width * number, 2 * width)
    rows = [{"prompt": text[i : i + width], "response": text[i + width : i + 2 * width]} for i in starts]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_recipe(case: Case, options: argparse.Namespace, work: Path) -> Facts:
    """Settings of a case; its rows are longer than they may be, and cut."""
    if case.kind == GLM_TINY:
        model, template = GLM_TINY, None
    else:
        pair = (make_chatglm3 if case.kind == "chatglm3" else make_glm4)(options.work, options.shape)
        model, template = str(pair.ours), pair.template
    path = work / "rows.jsonl"
    write_rows(path, 2 * ROWS[case.length], case.length)
    half = case.length // 2
    # where gradients weigh, they are to be there
    micro_batches = 2 if case.method in ("freeze", "full") else 1
    return {
        "model": model, "template": template, "device": "cpu", "quant": case.quant,
        "output": str(work / "run"), "method": METHODS[case.method],
        "data": {
            "train": str(path), "validation": str(path), "test": str(path), "overlong": "cut_any",
            "max_source_tokens": half, "max_target_tokens": half,
            "max_validation_rows": ROWS[case.length], "max_test_rows": ROWS[case.length],
        },
        "train": {
            "steps": STEPS, "eval_every": STEPS, "schedule": "constant", "lr": 1e-4,
            "batch_size": micro_batches * ROWS[case.length], "micro_batch_size": ROWS[case.length],
            "gradient_checkpointing": case.is_recomputed,
        },
        "samples": {"max_new_tokens": 4},
        "retain": {"ratio": 0, "report": "end" if case.is_reported else "off", "max_new_tokens": 32},
        "evaluate": {"batch_size": 4, "max_new_tokens": 16},
    }  # fmt: skip


def foresee(recipe: Facts) -> Facts:
    """The forecast's phases on this machine, by part, in MiB, and the size of the process that foresaw."""
    found = forecast(drain(planning(load_recipe(recipe))), this_machine())
    return {"tokens": found.tokens, "phases": in_mib(found), "foreseer": to_mib(Process().memory_info().rss)}


def in_mib(found: Forecast) -> Facts:
    """The parts of each phase, and what of them is mapped."""
    return {
        phase.name: {part: to_mib(size) for part, size in phase.parts.items()}
        | ({"mapped": to_mib(phase.mapped)} if phase.mapped else {})
        for phase in found.phases
    }


def to_mib(size: float) -> float:
    """MiB, to a tenth."""
    return round(size / MIB, 1)


def train(recipe: RecipeSource) -> Iterator[str]:
    """Train by a recipe, as the command does but for its printing; yield what comes next."""
    for event in training(load_recipe(recipe)):
        if isinstance(event, Working):
            yield "loading" if event.what in BEFORE_PASSES else event.what
        elif isinstance(event, Evaluated | Saved):
            yield "step"


def evaluate(recipe: Facts) -> Iterator[str]:
    """Answer the run's rows."""
    told = {**recipe, "model": recipe["output"], "output": f"{recipe['output']}-answers"}
    for event in evaluating(load_recipe({name: value for name, value in told.items() if name != "method"})):
        if isinstance(event, Working):
            yield event.what


def export(recipe: Facts, to: str) -> Iterator[str]:
    """Export the run."""
    for event in exporting(Order(recipe["output"], to, Path(f"{recipe['output']}-{to}"), device="cpu")):
        yield "proving" if "fresh process" in event.text else "exporting"


def be_child(what: str, recipe: Facts, threads: int) -> Facts:
    """Foresee, train, evaluate or export in this process; return the figures."""
    torch.set_num_threads(threads)
    planned = {**recipe, "output": f"{recipe['output']}-planned"}
    works = {"train": train, "evaluate": evaluate}
    if recipe["model"] != GLM_TINY:
        tighten_heap()  # as a run does of a model above 1 GiB
    with quiet():
        if what == "foresee":
            return foresee(planned)
        vars(report_forgetting)["allowed_seconds"] = lambda *_: 1e9  # however short the run is
        plan = drain(planning(load_recipe(planned)))  # and its tokenizer is there
        held = resting_bytes()
        del plan
        resting_bytes()  # and goes, for the run has one of its own
        watch = Watch()
        with watch.looking():
            for doing in works[what](recipe) if what in works else export(recipe, what):
                watch.doing = doing
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    measured = {doing: to_mib(size - held) for doing, size in watch.peaks.items()}
    return {"measured": measured, "interpreter": to_mib(held), "child": to_mib(child)}


def run_child(what: str, recipe: Facts, threads: int) -> Facts:
    """The figures of a process of its own, forked from this one, which has all imported."""
    with get_context("fork").Pool(1) as pool:
        return pool.apply(be_child, (what, recipe, threads))


def warm(work: Path) -> None:
    """Import what runs import, by a run on the bundled model that has a bit of everything."""
    work.mkdir(parents=True, exist_ok=True)
    write_rows(work / "rows.jsonl", 2, 64)
    rows = str(work / "rows.jsonl")
    recipe = {
        "model": GLM_TINY, "output": str(work / "glm-tiny"), "device": "cpu", "quant": "nf4",
        "data": {"train": rows, "validation": rows, "overlong": "cut_any", "max_tokens": 64},
        "method": {"name": "adalora"},
        "train": {"steps": 2, "eval_every": 1}, "samples": {"max_new_tokens": 4}, "retain": {"ratio": 0},
    }  # fmt: skip
    shutil.rmtree(recipe["output"], ignore_errors=True)
    with quiet():
        for _ in train(recipe):
            pass


def run_case(case: Case, options: argparse.Namespace, kept: Mapping[str, Facts]) -> dict[str, Facts]:
    """Its figures, and those of what is done with the run; `again`: only its forecasts are new."""
    work: Path = options.work / "memory" / f"{options.shape} {case.name}".replace(" ", "-").replace(",", "")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    recipe = make_recipe(case, options, work)
    names = {"train": case.name, **{what: f"{case.name}, then {what}" for what in case.then}}
    foreseen = run_child("foresee", recipe, options.threads)
    if not options.again:
        kept = {name: run_child(what, recipe, options.threads) for what, name in names.items()}
    shutil.rmtree(work)
    return {name: kept[name] | foreseen for name in names.values() if name in kept}


PHASES = {"evaluate": "evaluation", "merged": "merge", "int4": "export"}


def compare(name: str, facts: Facts) -> Facts:
    """Predicted and measured anonymous memory of a case, above the interpreter; in MiB."""
    parts = facts["phases"][PHASES.get(name.partition(", then ")[2], "training")]
    mapped = parts.get("mapped", 0)
    predicted = sum(size for part, size in parts.items() if part != "mapped") - mapped - facts["foreseer"]
    measured = max(size for doing, size in facts["measured"].items() if doing != "loading")
    ratio = round(predicted / measured, 3)
    return {"mapped": mapped, "predicted": round(predicted), "measured": round(measured), "ratio": ratio}


def main(words: Sequence[str] | None = None) -> Record:
    """Run the cases; return the figures of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=models.SHAPES, default="170m")
    parser.add_argument("--case", default="", help="only those whose name contains it")
    parser.add_argument("--missing", action="store_true", help="only those that have no figures yet")
    parser.add_argument("--again", action="store_true", help="new forecasts beside what was measured")
    options = measure.parse(parser, words)
    kept: Record = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"cases": {}}
    found: dict[str, Facts] = {}
    record = measure.begin("memory", "MiB", options)
    torch.set_num_threads(1)  # what is forked later has no threads
    warm(options.work / "memory")
    for case in CASES:
        if options.case not in case.name or (options.missing and case.name in kept["cases"]):
            continue
        for name, facts in run_case(case, options, kept["cases"]).items():
            found[name] = facts
            print(f"{name:56} {json.dumps(compare(name, facts))}", flush=True)
            print(f"    {json.dumps(facts)}", flush=True)
        if not options.dry and options.shape != "test":
            kept |= {"machine": record["machine"], "when": record["when"]}
            kept["cases"] |= found
            RESULT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"machine": record["machine"], "cases": found}


if __name__ == "__main__":
    main()
