"""The forecast for a card beside what a run takes on it: full-size ChatGLM3-6B, smaller cards imitated.

A case is a process of its own. CUDA's allocator refuses it what the card it imitates would not have, and the
card has no bf16 then, as a P100 or 2080 Ti. The forecast settles the run; where it says that it does not fit,
the settings that it names instead are added, and then it must. Figures in MiB:
- `predicted`: the forecast's training phase, by part;
- `allocated`: the most bytes of tensors; `reserved`: the most that the allocator held; `used`: the most that
  the driver counts, CUDA's context among it.

The record goes to results/memory_gpu.json.

    python -m benchmarks.memory_gpu --work /tmp/memory-gpu          # any card of 24 GB or more; 13 GB of disk
    python -m benchmarks.memory_gpu --size tiny --dry               # all but the card, on a CPU
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from psutil import Process

from benchmarks import measure, models
from benchmarks.measure import Record
from benchmarks.memory import in_mib, to_mib, train, write_rows
from benchmarks.memory_cases import METHODS
from benchmarks.train_gpu import make_folder
from benchmarks.train_models import make_chatglm3, write_sentencepiece
from glmtune.log import quiet
from glmtune.recipe import load_recipe
from glmtune.workflows.events import drain
from glmtune.workflows.forecast import CARDS, Machine, forecast
from glmtune.workflows.plan import planning

Facts = dict[str, Any]
RESULT = measure.RESULTS / "memory_gpu.json"
STEPS = 3


@dataclass(frozen=True)
class Case:
    """A run on a card of so many GB."""

    card: int
    method: str
    quant: str | None
    length: int
    """Tokens of a question, and of its answer."""
    rows: int = 1
    """Of a step; the forecast settles the micro-batches."""

    @property
    def name(self) -> str:
        """All of it in words."""
        return f"{self.card} GB: {self.method} {self.quant or 'fp16'} {self.rows} x {2 * self.length}"


CASES = (
    Case(6, "ptuning", "int4", 64),
    Case(6, "lora", "int4", 64, rows=4),
    Case(8, "ptuning", "int4", 64, rows=16),
    Case(8, "lora", "int4", 384, rows=4),
    Case(8, "lora", "int8", 64),
    Case(11, "lora", "int8", 384, rows=4),
    Case(11, "ptuning", "int8", 64, rows=4),
    Case(16, "lora", None, 64, rows=4),
    Case(16, "lora", None, 384, rows=4),
    Case(16, "ptuning", None, 64, rows=4),
    Case(24, "lora", None, 384, rows=4),
    Case(24, "ptuning", None, 384, rows=4),
    Case(24, "lora, all linear", "nf4", 512, rows=8),
)


def imitate(size: int) -> Machine:
    """Let this process have no more of its card than one of so many GB has, and no bf16; return that card."""
    found = next(card for card in CARDS if card.name.startswith(f"{size} GB"))
    if torch.cuda.is_available():
        share = found.free / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    torch.cuda.is_bf16_supported = lambda *_, **__: False
    return found.with_bf16(False)


def make_recipe(case: Case, folder: Path, work: Path) -> Facts:
    """Settings of a case; micro-batches and recomputation are left to the forecast."""
    path = work / "rows.jsonl"
    write_rows(path, case.rows, 2 * case.length)
    return {
        "model": str(folder), "template": "chatglm3", "quant": case.quant, "method": METHODS[case.method],
        "output": str(work / "run"), "dtype": "fp16" if torch.cuda.is_available() else "auto",
        "data": {
            "train": str(path), "validation": str(path), "overlong": "cut_any",
            "max_source_tokens": case.length, "max_target_tokens": case.length,
        },
        "train": {
            "steps": STEPS, "eval_every": STEPS, "schedule": "constant", "lr": 1e-4, "batch_size": case.rows
        },
        "samples": {"max_new_tokens": 4}, "retain": {"ratio": 0},
    }  # fmt: skip


def foresee(recipe: Facts, machine: Machine) -> tuple[Any, str]:
    """The forecast of a recipe, or of one that fits with the words that the first names; those words."""
    found = forecast(drain(planning(load_recipe(recipe))), machine)
    words = found.override
    if not found.fits and words:
        found = forecast(drain(planning(load_recipe(recipe, words.split()))), machine)
    if not found.fits:
        raise SystemExit(f"{machine.name}: {found.hint}")
    return found, words


def be_child(spec: Mapping[str, Any]) -> Facts:
    """Foresee and train in this process; return the figures."""
    with quiet():
        machine = imitate(spec["card"])
        found, words = foresee(spec["recipe"], machine)
        settings = found.recipe.train
        facts = {
            "override": words, "tokens": found.tokens, "phases": in_mib(found), "free": to_mib(machine.free),
            "micro_batch_size": settings.micro_batch_size,
            "gradient_checkpointing": settings.gradient_checkpointing,
        }  # fmt: skip
        settled = found.recipe if torch.cuda.is_available() else load_recipe(spec["recipe"])
        before = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
        for _ in train(settled):
            facts |= {"measured": highest(facts.get("measured", {}), before)}
    return facts


def highest(so_far: Mapping[str, float], before: int) -> dict[str, float]:
    """The peaks so far and now: the allocator's are set back while a run settles its micro-batches."""
    if torch.cuda.is_available():
        now = {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "used": before - torch.cuda.mem_get_info()[0],
        }
    else:
        now = {"resident": Process().memory_info().rss}
    return {name: max(so_far.get(name, 0), to_mib(size)) for name, size in now.items()}


def run_case(case: Case, folder: Path, options: argparse.Namespace) -> Facts:
    """The figures of a process of its own."""
    work = options.work / case.name.replace(" ", "-").replace(",", "").replace(":", "")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    spec = {"card": case.card, "recipe": make_recipe(case, folder, work)}
    (work / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.memory_gpu", "--child", str(work / "spec.json")]
    done = subprocess.run(command, cwd=models.ROOT, stdout=subprocess.PIPE, text=True, check=False)
    shutil.rmtree(work)
    if done.returncode:
        return {"failed": done.returncode}
    found: Facts = json.loads(done.stdout.splitlines()[-1])
    if allocated := found["measured"].get("allocated"):
        found["ratio"] = round(sum(found["phases"]["training"].values()) / allocated, 3)
    return found


def main(words: Sequence[str] | None = None) -> Record | None:
    """Run the cases; return the figures of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("6b", "tiny"), default="6b")
    parser.add_argument("--case", default="", help="only those whose name contains it")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = measure.parse(parser, words)
    if options.child:
        print(json.dumps(be_child(json.loads(options.child.read_text(encoding="utf-8")))))
        return None
    options.device = "cuda:0" if torch.cuda.is_available() else "cpu"
    folder = options.work / f"memory-gpu-{options.size}"
    if options.size == "tiny":
        folder = make_chatglm3(options.work, "test").ours
    elif not folder.exists():
        make_folder(folder, options.size)
        write_sentencepiece(folder)
    record = measure.begin("memory gpu", "MiB", options)
    cases: dict[str, Facts] = {}
    for case in CASES:
        if options.case in case.name:
            cases[case.name] = run_case(case, folder, options)
            print(f"{case.name:48} {json.dumps(cases[case.name])}", flush=True)
    found = {"machine": record["machine"], "when": record["when"], "cases": cases}
    if not options.dry and options.size != "tiny":
        RESULT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
