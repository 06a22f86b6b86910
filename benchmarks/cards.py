"""Forecasts of the published models on cards and machines that people have, for the tables of the docs.

The folders hold the official configs and tokenizers of ../shared or $GLMTUNE_SHARED, and a file of weights
that has a header and no content: a forecast reads no weight. The figures go to results/cards.json;
`python -m tools.memory_tables` writes the tables.

    python -m benchmarks.cards                    # minutes on one core; 1 GB of memory
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.memory import in_mib, write_rows
from benchmarks.models import SHARED
from glmtune.families import identify
from glmtune.folder import ModelFolder
from glmtune.log import quiet
from glmtune.models.loaders import outline_of_folder
from glmtune.recipe import load_recipe
from glmtune.workflows.events import drain
from glmtune.workflows.forecast import CARDS, Machine, forecast
from glmtune.workflows.plan import planning

Facts = dict[str, Any]
RESULT = measure.RESULTS / "cards.json"
TOKENIZERS = SHARED / "tokenizers"
TYPES = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32"}


@dataclass(frozen=True)
class Published:
    """A model as it was published: its config's folder and its tokenizer's file in ../shared."""

    config: str
    tokenizer: str
    file: str = "tokenizer.model"


MODELS = {
    "ChatGLM-6B": Published("chatglm-6b_20230904", "ice_text.model", "ice_text.model"),
    "ChatGLM3-6B": Published("chatglm3-6b_20231207", "chatglm2_3.tokenizer.model"),
    "GLM-4-9B": Published("glm-4-9b-chat", "glm4.tokenizer.model"),
}


def make_folder(work: Path, name: str) -> Path:
    """The files of a published model that are not weights, and a header of weights."""
    folder, published = work / name, MODELS[name]
    if not TOKENIZERS.is_dir():
        raise SystemExit(f"{SHARED}: no configs and tokenizers there; say where with GLMTUNE_SHARED=...")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in ("config.json", "tokenizer_config.json"):
        (folder / file).write_bytes((TOKENIZERS / "configs" / published.config / file).read_bytes())
    (folder / published.file).write_bytes((TOKENIZERS / published.tokenizer).read_bytes())
    known = identify(ModelFolder(folder))
    outline = outline_of_folder(ModelFolder(folder), known, {})
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))["torch_dtype"]
    write_header(folder / "model.safetensors", outline.state_dict(), TYPES[f"torch.{stored}"])
    return folder


def write_header(path: Path, tensors: Mapping[str, Any], kind: str) -> None:
    """A file of half-precision weights without their values: a hole, which takes no disk."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * prod(tensor.shape)
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@dataclass(frozen=True)
class Run:
    """Rows that are trained on: tokens of a question and of an answer, and how many at once."""

    method: str
    source: int
    target: int
    rows: int
    is_recomputed: bool = True

    @property
    def name(self) -> str:
        """In words, as the tables have it."""
        ending = "" if self.is_recomputed else ", kept"
        return f"{self.method} {self.rows} x {self.source} + {self.target}{ending}"


LENGTHS = tuple(Run("lora", *parts, 1) for parts in ((64, 64), (256, 512), (1024, 1024), (4096, 4096)))
PREFIX = Run("ptuning", 64, 64, 1)
DEMO = tuple(Run(method, 256, 512, 4, is_) for method in ("lora", "ptuning") for is_ in (True, False))
RUNS = {
    "ChatGLM-6B": (LENGTHS[0], PREFIX),
    "ChatGLM3-6B": (*LENGTHS, PREFIX, *DEMO),
    "GLM-4-9B": LENGTHS,
}
"""64 + 64 as in ChatGLM-6B's and ChatGLM2's ptuning/README, 256 + 512 as in ChatGLM3's finetune_demo."""
QUANTS = (None, "int8", "int4")
SYSTEM = 2**30
"""Bytes that the system and other programs are taken to need on a machine without a card."""
LAPTOPS = tuple(
    Machine(f"{size} GB, no card", "cpu", size * 2**30 - SYSTEM, has_bf16=False) for size in (8, 16, 32)
)
MACHINES = (*(card.with_bf16(False) for card in CARDS if card.free < 25 * 2**30), *LAPTOPS)
"""Without bf16, as a P100 and a 2080 Ti have it, and most laptops."""
AMPLE = {"cuda": CARDS[-1].with_bf16(False), "cpu": replace(LAPTOPS[-1], free=2**40)}


def make_recipe(folder: Path, run: Run, quant: str | None, work: Path) -> Facts:
    """Settings of a run on rows of full length."""
    path = work / f"rows-{run.source + run.target}.jsonl"
    write_rows(path, 4, run.source + run.target)
    return {
        "model": str(folder), "quant": quant, "method": run.method, "output": str(work / "run"),
        "data": {
            "train": str(path), "validation": str(path), "overlong": "cut_any",
            "max_source_tokens": run.source, "max_target_tokens": run.target,
        },
        "train": {
            "steps": 100, "batch_size": 4, "micro_batch_size": run.rows,
            "gradient_checkpointing": run.is_recomputed,
        },
        "evaluate": {"batch_size": 1}, "samples": {"prompts": []}, "retain": {"ratio": 0},
    }  # fmt: skip


def foresee(recipe: Facts) -> Facts:
    """The phases of a run where there is room, by device, and the machines that it fits."""
    plan = drain(planning(load_recipe(recipe)))
    phases = {device: in_mib(forecast(plan, machine)) for device, machine in AMPLE.items()}
    return phases | {"fits": [machine.name for machine in MACHINES if forecast(plan, machine).fits]}


def main(words: Sequence[str] | None = None) -> Facts:
    """Foresee them all; return the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, help="this one alone")
    options = measure.parse(parser, words)
    cases: Facts = {}
    for name in [options.model] if options.model else MODELS:
        folder = make_folder(options.work / "published", name)
        for run in RUNS[name]:
            for quant in (None,) if run in DEMO else QUANTS:
                case = f"{name} {quant or 'half'} {run.name}"
                with quiet():
                    cases[case] = foresee(make_recipe(folder, run, quant, options.work / "published"))
                print(f"{case}: {json.dumps(cases[case])}", flush=True)
    if not options.dry:
        RESULT.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")
    return cases


if __name__ == "__main__":
    main()
