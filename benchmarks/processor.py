"""What a kind of processor is quick in: the types of weights in one linear layer, and LoRA in each of them.

Cases:
- `product`: rows of 768 numbers through a layer of 768 x 2048 in fp32, bf16, fp16 and W8A8, milliseconds;
- `lora`: `glmtune train` on glm-tiny with `dtype=auto`, as without a word, and with fp32 and bf16; tokens a
  second, the median of a run's steps.

Caps make an older processor of a newer one, and a column of their own:

    python -m benchmarks.processor --cap AVX2
    python -m benchmarks.processor --rounds 1 --steps 3 --dry                       # shows that it runs
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.measure import Record
from benchmarks.models import ROOT
from benchmarks.products import Block, Layer
from glmtune.generate.fast import FastLinear, pack_all
from glmtune.log import quiet
from glmtune.run_files import read_json_lines
from glmtune.workflows import train

INPUTS, OUTPUTS = 768, 2048
ROWS = (512, 1)
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def run_product(options: argparse.Namespace) -> Record:
    """One layer."""
    record = measure.begin("product", "ms", options)
    torch.manual_seed(0)
    dense = nn.Linear(INPUTS, OUTPUTS, bias=False)
    [fast] = pack_all(FastLinear, [dense])
    sides = {}
    for rows in ROWS:
        x = torch.randn(rows, INPUTS)
        for name, dtype in KINDS.items():
            layer: Layer = nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=dtype)
            sides[f"{name}, {rows} rows"] = Block([layer], [x.to(dtype)], options.calls)
        sides[f"W8A8, {rows} rows"] = Block([fast.multiply], [x], options.calls)
    record["sides"] = measure.take_turns(sides, options.rounds)
    return record


class Tuning:
    """LoRA on glm-tiny with a `dtype`, by the whole command but its printing; keeps its last loss."""

    def __init__(self, dtype: str, folder: Path, steps: int) -> None:
        self.recipe = {
            "model": "glm-tiny",
            "dtype": dtype,
            "device": "cpu",
            "output": folder / dtype,
            "data": {"train": ROOT / "examples" / "adverts.jsonl"},
            "train": {"lr": 1e-3, "eval_every": steps},
            "samples": {"prompts": []},
            "retain": {"ratio": 0},
        }
        self.steps = steps
        self.loss = 0.0

    def warm(self) -> None:
        """Two steps."""
        self._train(2)

    def run(self) -> float:
        """Tokens a second."""
        lines = self._train(self.steps)
        self.loss = lines[-1]["loss"]
        return median(line["tokens_per_s"] for line in lines)

    def _train(self, steps: int) -> list[dict[str, Any]]:
        folder: Path = self.recipe["output"]
        shutil.rmtree(folder, ignore_errors=True)
        with quiet():
            result = train({**self.recipe, "train": {**self.recipe["train"], "steps": steps}})
        return [line for line in read_json_lines(result.path / "metrics.jsonl") if "loss" in line]


def run_lora(options: argparse.Namespace) -> Record:
    """One run for each type and round."""
    record = measure.begin("lora tiny", "tokens/s", options)
    folder = options.work / "processor"
    sides = {f"dtype={name}": Tuning(name, folder, options.steps) for name in ("auto", "fp32", "bf16")}
    record["sides"] = measure.take_turns(sides, options.rounds)
    record["checks"] = {f"last loss, {name}": round(side.loss, 4) for name, side in sides.items()}
    return record


CASES = {"product": run_product, "lora": run_lora}


def main(words: Sequence[str] | None = None) -> list[Record]:
    """Run the cases; return their records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES, nargs="?", help="one of the two")
    parser.add_argument("--calls", type=int, default=5, help="of a product, of which the fastest counts")
    parser.add_argument("--steps", type=int, default=8, help="of a run")
    options = measure.parse(parser, words)
    wanted = [options.case] if options.case else list(CASES)
    return [measure.finish(CASES[case](options), "processor", options) for case in wanted]


if __name__ == "__main__":
    main()
