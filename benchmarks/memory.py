"""The forecast of a run's memory beside what the run then took, a process of its own for each case.

A case trains random weights as `glmtune train` does, two steps on rows of one length. What a process holds
that has planned it and has trained glm-tiny so, interpreter and libraries, counts on neither side. In MiB:
- `predicted`: the forecast's training phase, by part;
- `anonymous`: the most memory of its own, looked at every 3 ms, by what it was doing;
- `resident`: the same with the pages of mapped files, weights held as stored among them.

Three of the runs are then evaluated and exported. Each case is kept in results/memory.json as soon as it is
done; `python -m tools.memory_tables` writes the table of docs/results.md.

    python -m benchmarks.memory                          # half an hour on two idle cores
    python -m benchmarks.memory --case "lora int4"       # cases whose name contains it
    python -m benchmarks.memory --again                  # new forecasts beside what was measured
    python -m benchmarks.memory --shape test --dry       # shows that it runs
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, models
from benchmarks.measure import Record
from benchmarks.train_models import find_rows, make_chatglm3, make_glm4
from benchmarks.trainers import MIB, resting_bytes
from glmtune.log import quiet
from glmtune.recipe import load_recipe
from glmtune.recipe.parse import RecipeSource
from glmtune.workflows.evaluating import evaluating
from glmtune.workflows.events import Evaluated, Saved, Working, drain
from glmtune.workflows.execute import training
from glmtune.workflows.exporting import Order, exporting
from glmtune.workflows.forecast import Forecast, forecast, this_machine
from glmtune.workflows.plan import planning

Facts = dict[str, Any]
RESULT = measure.RESULTS / "memory.json"
METHODS: dict[str, Facts] = {
    "lora": {"name": "lora"},
    "lora, all linear": {
        "name": "lora",
        "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    },
    "ptuning": {"name": "ptuning"},
    "adalora": {"name": "adalora"},
    "freeze": {"name": "freeze"},
    "full": {"name": "full"},
}
ROWS = {128: 2, 512: 1, 1024: 1}
"""Rows of a micro-batch, by their length."""
STEPS = 2
LOOK_S = 0.003


@dataclass(frozen=True)
class Case:
    """A run: method, bits, length, recomputation, and what is done with it afterwards."""

    method: str
    quant: str | None
    length: int
    is_recomputed: bool
    kind: str = "chatglm3"
    then: tuple[str, ...] = ()
    """`evaluate`, or the kind of an export."""

    @property
    def name(self) -> str:
        """All of it in words."""
        kind = "" if self.kind == "chatglm3" else f"{self.kind} "
        ending = ", recomputed" if self.is_recomputed else ""
        return f"{kind}{self.method} {self.quant or 'bf16'} {ROWS[self.length]} x {self.length}{ending}"


CASES = (
    Case("lora", None, 128, False, then=("evaluate", "merged", "int4")),
    Case("lora", "int8", 512, True),
    Case("lora", "int4", 1024, False),
    Case("lora", "nf4", 512, False),
    Case("lora, all linear", None, 512, True),
    Case("lora, all linear", "int8", 128, False),
    Case("lora, all linear", "int4", 512, False),
    Case("lora, all linear", "nf4", 1024, True),
    Case("ptuning", None, 1024, False),
    Case("ptuning", "int8", 1024, True),
    Case("ptuning", "int4", 128, True, then=("evaluate",)),
    Case("ptuning", "nf4", 512, False),
    Case("adalora", None, 512, False),
    Case("adalora", "int8", 1024, False),
    Case("adalora", "int4", 512, True),
    Case("adalora", "nf4", 128, True),
    Case("freeze", None, 1024, True),
    Case("freeze", "int8", 512, False),
    Case("freeze", "int4", 1024, False),
    Case("freeze", "nf4", 128, False),
    Case("full", None, 128, True, then=("evaluate", "merged")),
    Case("full", None, 512, False),
    Case("full", None, 1024, True),
    Case("lora", None, 512, False, kind="glm4"),
    Case("lora", "int4", 1024, True, kind="glm4"),
)
"""Every pair of method, bits, length and recomputation is among them."""


@dataclass
class Watch:
    """The most memory so far, by what the process is doing; looks from a thread of its own."""

    doing: str = "loading"
    anonymous: dict[str, int] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)

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
        found = status_bytes()
        for peaks, name in ((self.anonymous, "RssAnon"), (self.resident, "VmRSS")):
            peaks[self.doing] = max(peaks.get(self.doing, 0), found[name])


def status_bytes() -> dict[str, int]:
    """This process's sizes as Linux names them."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(value.removesuffix("kB")) * 1024 for name, value in pairs}


def write_rows(path: Path, number: int, length: int) -> None:
    """Rows of Chinese text whose questions and answers both have more tokens than `length`."""
    text = find_rows().train.read_text(encoding="utf-8")
    width = 4 * length  # characters: more than as many tokens hold
    starts = range(0, 2 * width * number, 2 * width)
    rows = [{"prompt": text[i : i + width], "response": text[i + width : i + 2 * width]} for i in starts]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_recipe(case: Case, options: argparse.Namespace, work: Path) -> Facts:
    """Settings of a case; its rows are longer than they may be, and cut."""
    pair = (make_chatglm3 if case.kind == "chatglm3" else make_glm4)(options.work, options.shape)
    path = work / "rows.jsonl"
    write_rows(path, 2 * ROWS[case.length], case.length)
    half = case.length // 2
    micro_batches = (
        2 if case.method in ("freeze", "full") else 1
    )  # where gradients weigh, they are to be there
    return {
        "model": str(pair.ours), "template": pair.template, "device": "cpu", "quant": case.quant,
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
        "evaluate": {"batch_size": 4, "max_new_tokens": 16},
    }  # fmt: skip


def foresee(recipe: Facts) -> Facts:
    """The forecast's phases on this machine, by part, in MiB, and the size of the process that foresaw."""
    plan = drain(planning(load_recipe(recipe)))
    found = forecast(plan, this_machine())
    return {"tokens": found.tokens, "phases": in_mib(found), "foreseer": to_mib(status_bytes()["VmRSS"])}


def in_mib(found: Forecast) -> Facts:
    """The parts of each phase."""
    return {phase.name: {part: to_mib(size) for part, size in phase.parts.items()} for phase in found.phases}


def to_mib(size: float) -> float:
    """MiB, to a tenth."""
    return round(size / MIB, 1)


def train(recipe: RecipeSource) -> Iterator[str]:
    """Train by a recipe, as the command does but for its printing; yield what comes next."""
    for event in training(load_recipe(recipe)):
        if isinstance(event, Working):
            yield event.what
        elif isinstance(event, Evaluated | Saved):
            yield "step"


def on_glm_tiny(recipe: Facts) -> Facts:
    """The same on the bundled model, in a single step of single short rows."""
    data = {**recipe["data"], "max_source_tokens": 32, "max_target_tokens": 32}
    train = {**recipe["train"], "steps": 1, "eval_every": 1, "batch_size": 1, "micro_batch_size": 1}
    output = f"{recipe['output']}-of-glm-tiny"
    shutil.rmtree(output, ignore_errors=True)
    return {**recipe, "model": "glm-tiny", "template": None, "output": output, "data": data, "train": train}


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


def be_child(spec: Mapping[str, Any]) -> Facts:
    """Do in this process what the file says; return the figures."""
    torch.set_num_threads(spec["threads"])
    recipe, what = spec["recipe"], spec["what"]
    planned = {**recipe, "output": f"{recipe['output']}-planned"}
    works = {"train": train, "evaluate": evaluate}
    with quiet():
        for _ in train(on_glm_tiny(recipe)):  # so that all is imported
            pass
        plan = drain(planning(load_recipe(planned)))  # and its tokenizer is there
        held = {"anonymous": resting_bytes(), "resident": status_bytes()["VmRSS"]}
        del plan
        watch = Watch()
        with watch.looking():
            for doing in works[what](recipe) if what in works else export(recipe, what):
                watch.doing = doing
    found: Facts = {
        name: {doing: to_mib(size - held[name]) for doing, size in peaks.items()}
        for name, peaks in (("anonymous", watch.anonymous), ("resident", watch.resident))
    }
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return found | {"process": to_mib(held["resident"]), "child": to_mib(child)}


def run_child(what: str, recipe: Facts, options: argparse.Namespace, work: Path) -> Facts:
    """The figures of a process of its own."""
    path = work / "spec.json"
    path.write_text(json.dumps({"what": what, "recipe": recipe, "threads": options.threads}))
    command = [sys.executable, "-m", "benchmarks.memory", "--child", str(path)]
    done = subprocess.run(command, cwd=models.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: Facts = json.loads(done.stdout.splitlines()[-1])
    return found


def run_case(case: Case, options: argparse.Namespace, kept: Mapping[str, Facts]) -> dict[str, Facts]:
    """Its figures, and those of what is done with the run; `again`: only its forecasts are new."""
    work: Path = options.work / "memory" / f"{options.shape} {case.name}".replace(" ", "-").replace(",", "")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    recipe = make_recipe(case, options, work)
    names = {"train": case.name, **{what: f"{case.name}, then {what}" for what in case.then}}
    with quiet():
        foreseen = foresee(recipe)
    if not options.again:
        kept = {name: run_child(what, recipe, options, work) for what, name in names.items()}
    shutil.rmtree(work)
    return {name: kept[name] | foreseen for name in names.values() if name in kept}


PHASES = {"evaluate": "evaluation", "merged": "merge", "int4": "export"}


def compare(name: str, facts: Facts) -> Facts:
    """Predicted and measured of a case, above the interpreter; in MiB."""
    what = name.partition(", then ")[2]
    parts = facts["phases"].get(PHASES.get(what, "training"), {})
    predicted = sum(parts.values()) - facts.get("foreseer", 0)
    measured = {kind: max(facts[kind].values()) for kind in ("anonymous", "resident")}
    ratio = predicted / measured["resident"]
    return {"predicted": round(predicted), **measured, "ratio": round(ratio, 3)}


def main(words: Sequence[str] | None = None) -> Record | None:
    """Run the cases; return the figures of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=models.SHAPES, default="170m")
    parser.add_argument("--case", default="", help="only those whose name contains it")
    parser.add_argument("--again", action="store_true", help="new forecasts beside what was measured")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = measure.parse(parser, words)
    if options.child:
        print(json.dumps(be_child(json.loads(options.child.read_text(encoding="utf-8")))))
        return None
    kept: Record = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"cases": {}}
    found: dict[str, Facts] = {}
    for case in CASES:
        if options.case not in case.name:
            continue
        record = measure.begin("memory", "MiB", options)
        for name, facts in run_case(case, options, kept["cases"]).items():
            found[name] = facts
            print(f"{name:56} {json.dumps(compare(name, facts))}", flush=True)
            print(f"    {json.dumps(facts)}", flush=True)
        if not options.dry and options.shape != "test":
            kept = {**kept, "machine": record["machine"], "when": record["when"]}
            kept["cases"] |= found
            RESULT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"machine": record["machine"], "cases": found}


if __name__ == "__main__":
    main()
