"""Training, in turns: `glmtune train`, and the same architecture, weights and rows by HF Trainer and PEFT.

Real tokens a second (padding is none). Each side is a process of its own that stands still while another
takes its steps. Ours trains at `auto`. No dropout where losses are compared; LoRA has r=8.

Cases:
- `lora 4`: query_key_value, 4 rows a step; the peer in fp32, padded to 256, and with its base in bf16, and
  what products of the model's own shapes alone would allow;
- `lora 16`: the same with 16 rows a step;
- `checkpointing`: `lora 4` with gradient checkpointing on both sides;
- `all linear`: ours with LoRA in every linear layer, beside query_key_value alone;
- `glm4`: GLM-4-0414's class;
- `ptuning`: P-Tuning v2, beside a prefix given as `past_key_values`;
- `defaults`: `glmtune train` with nothing set, beside TrainingArguments and LoraConfig with nothing set.

Each case appends its speed and its step's memory to results/train.jsonl as soon as it is done.

    python -m benchmarks.train                                           # minutes on two idle cores
    python -m benchmarks.train --cap AVX2                                # as on an older processor
    python -m benchmarks.train --case "lora 4"
    python -m benchmarks.train --shape test --rounds 1 --threads 1       # shows that it runs
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, models
from benchmarks.measure import Record
from benchmarks.operations import MatrixPeak, Widths, Work, matrix_peaks
from benchmarks.train_models import (
    Pair,
    Rows,
    find_rows,
    make_chatglm3,
    make_glm4,
    num_learned,
    num_tokens,
    rows_of_steps,
    write_first_weights,
    write_rows,
)
from glmtune.processor import has_bf16
from glmtune.recipe import load_recipe

LORA: dict[str, Any] = {"name": "lora", "r": 8, "dropout": 0.0}
ALL_LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
QKV = ["q_proj", "k_proj", "v_proj"]
LR = 1e-3
PTUNING_LR = 2e-2
MOST_ROWS = 1200
"""Of the training file: enough for all steps."""
DEFAULT_ROWS = 16
"""Rows of a step when nothing is set."""
HAS_NO_BF16 = "this processor has no bf16 instructions: some tens of times slower"
Facts = dict[str, Any]


@dataclass
class Training:
    """A side: a process that takes so many steps a turn."""

    name: str
    spec: Mapping[str, Any]
    work: Path
    tokens: Sequence[int]
    """Real tokens of each step of ours."""
    steps: int
    """Of ours, a turn."""
    each: int = 1
    """Steps of this side for one of ours."""
    losses: list[float] = field(default_factory=list)
    memory_mib: float | None = None
    _done: int = 0

    def start(self) -> None:
        """Begin to load; `wait` for the end of it."""
        stem = self.work / self.name.replace(" ", "-").replace(",", "")
        path, self._log = stem.with_suffix(".json"), stem.with_suffix(".log")
        path.write_text(json.dumps(self.spec), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.trainers", str(path)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=models.ROOT
            )

    def wait(self) -> Facts:
        """Return its next answer."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            tail = "\n".join(self._log.read_text(encoding="utf-8").splitlines()[-20:])
            raise SystemExit(f"{self.name}: ended with {self._process.returncode}\n{tail}")
        answer: Facts = json.loads(line)
        return answer

    def warm(self) -> None:
        """Take a turn while its memory is watched."""
        self.memory_mib = self._take(self.steps, is_watched=True).get("memory_mib")

    def run(self) -> float:
        """Real tokens a second."""
        tokens = sum(self.tokens[self._done : self._done + self.steps])
        seconds = self._take(self.steps, is_watched=False)["seconds"]
        print(f"  {self.name}: {tokens / seconds:.0f} tokens/s, loss {self.losses[-1]:.4f}", flush=True)
        return tokens / seconds

    def _take(self, steps: int, *, is_watched: bool) -> Facts:
        assert self._process.stdin
        order = {"steps": steps * self.each, "is_watched": is_watched}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self.wait()
        self._done += steps
        self.losses += answer["losses"]
        return answer

    def end(self) -> None:
        """Leave it no more to do."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def running(sides: Mapping[str, Training]) -> Iterator[None]:
    """Start them all, wait until each is ready, end them."""
    try:
        for side in sides.values():
            side.start()
        for side in sides.values():
            side.wait()
        yield
    finally:
        for side in sides.values():
            if hasattr(side, "_process"):
                side.end()


class Stage:
    """What the sides of a case share: folders, rows, steps."""

    def __init__(self, name: str, options: argparse.Namespace, *, batch: int, steps: int) -> None:
        """`batch`: rows a step; `steps`: of a turn."""
        self.name, self.options, self.batch, self.steps = name, options, batch, steps
        self.num_steps = steps * (options.rounds + 1)
        self.work: Path = options.work / "train" / f"{options.shape} {name}".replace(" ", "-")
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.rows: Rows = find_rows()
        self.tokens: list[int] = []

    def recipe(self, name: str, pair: Pair, method: Mapping[str, Any] | None, **train: Any) -> Facts:
        """Our settings; without a method, nothing is set that is not about files and rows."""
        told: Facts = {
            "model": str(pair.ours),
            "device": "cpu",
            "template": pair.template,
            "output": str(self.work / f"run-{name}".replace(" ", "-")),
            "data": {
                "train": str(self.rows.train), "validation": str(self.rows.validation),
                "max_rows": MOST_ROWS, "max_validation_rows": 4,
            },
            "samples": {"prompts": []}, "retain": {"ratio": 0},
        }  # fmt: skip
        if method is None:
            return told
        usual = {"batch_size": self.batch, "lr": LR, "schedule": "constant"}
        never = self.num_steps + 1
        return {
            **told, "method": dict(method), "train": {**usual, "steps": never, "eval_every": never, **train}
        }  # fmt: skip

    def ours(self, name: str, recipe: Facts) -> Training:
        """Our side."""
        rows = rows_of_steps(recipe, self.num_steps)
        self.tokens = [num_tokens(step) for step in rows]
        write_rows(self.work / "rows.json", [row for step in rows for row in step])
        self.works = [Work([len(row.input_ids) for row in step], num_learned(step)) for step in rows]
        spec = {"kind": "ours", "recipe": recipe, "threads": self.options.threads}
        return Training(name, spec, self.work, self.tokens, self.steps)

    def peer(self, name: str, pair: Pair, dtype: str, *, each: int = 1, **told: Any) -> Training:
        """HF Trainer's side, on the rows that our side takes; `arguments` are those of ours, if not told."""
        arguments = told.pop("arguments", hf_arguments(self.batch, LR))
        spec = {
            "kind": "peer", "class": pair.peer_class, "folder": str(pair.peer), "dtype": dtype,
            "rows": str(self.work / "rows.json"), "threads": self.options.threads, **told,
            "arguments": {"max_steps": self.num_steps * each + 1, "save_strategy": "no", **arguments},
        }  # fmt: skip
        return Training(name, spec, self.work, self.tokens, self.steps, each)

    def first_weights(self, pair: Pair, method: Mapping[str, Any]) -> str:
        """A file of what our method begins with."""
        path = self.work / "first.pt"
        write_first_weights(path, pair, self.options.shape, method)
        return str(path)

    def peaks(self) -> dict[str, MatrixPeak]:
        """What products alone would allow, in fp32 and where the processor has it in bf16."""
        widths = Widths.of(models.SHAPES[self.options.shape], models.VOCABULARY)
        found = matrix_peaks(widths, self.works[0])
        return {f"matrix peak {name}": peak for name, peak in found.items()}

    def measure(
        self, sides: Sequence[Training], *, peaks: bool = False, skipped: Facts | None = None
    ) -> list[Record]:
        """Let them take turns; a record of speed, and one of memory."""
        options = self.options
        print(f"train {self.name}: {self.num_steps} steps of {self.batch} rows", flush=True)
        record = measure.begin(f"train {self.name}", "tokens/s", options)
        told = {name: value for name, value in options.changed.items() if name != "only"}
        record["settings"] = {**told, "rows": self.rows.name}
        named = {side.name: side for side in sides}
        alone = self.peaks() if peaks else {}
        with running(named):
            record["sides"] = measure.take_turns({**named, **alone}, options.rounds)
        record["parts"] = {"settled": settled(sides[0].spec["recipe"]["output"])}
        record["checks"] = {f"last loss, {side.name}": round(side.losses[-1], 5) for side in sides}
        record["checks"] |= {f"{name}, GFLOP/s": round(peak.gflops, 1) for name, peak in alone.items()}
        if skipped:
            record["skipped"] = skipped
        memory = {
            **{key: record[key] for key in ("when", "machine", "rounds", "settings", "parts")},
            "case": f"train {self.name}, memory", "unit": "MiB",
            "sides": {side.name: [side.memory_mib] for side in sides if side.memory_mib is not None},
        }  # fmt: skip
        return [record, memory]


def settled(run: str) -> Facts:
    """What `auto` has become, by the run's own recipe."""
    recipe = load_recipe(Path(run) / "recipe.yaml")
    train = recipe.train
    return {
        "dtype": recipe.dtype,
        "precision": train.precision,
        "micro_batch_size": train.micro_batch_size,
        "gradient_checkpointing": train.gradient_checkpointing,
    }


def hf_arguments(rows: int, lr: float) -> Facts:
    """TrainingArguments' words for our settings."""
    return {"per_device_train_batch_size": rows, "learning_rate": lr, "lr_scheduler_type": "constant"}


def lora_on(targets: Sequence[str]) -> Facts:
    """PEFT's words for our LoRA."""
    return {"r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": [*targets]}


def run_lora(
    name: str, options: argparse.Namespace, *, batch: int, steps: int, is_full: bool
) -> list[Record]:
    """LoRA on query_key_value; `is_full`: with all peers and the matrix peak."""
    stage = Stage(name, options, batch=batch, steps=steps)
    pair = make_chatglm3(options.work, options.shape)
    ours = stage.ours("ours", stage.recipe("ours", pair, LORA))
    told = {"lora": lora_on(QKV), "initial": stage.first_weights(pair, LORA)}
    peers = [stage.peer("peer fp32", pair, "float32", **told)]
    skipped = {}
    if is_full:
        peers.append(stage.peer("peer fp32, padded to 256", pair, "float32", pad_to=256, **told))
        if has_bf16(torch.device("cpu")):
            peers.append(stage.peer("peer, base in bf16", pair, "bfloat16", **told))
        else:
            skipped["peer, base in bf16"] = HAS_NO_BF16
    return stage.measure([ours, *peers], peaks=True, skipped=skipped)


def run_checkpointing(options: argparse.Namespace) -> list[Record]:
    """The same with all layers recomputed, on both sides."""
    stage = Stage("checkpointing", options, batch=4, steps=2)
    pair = make_chatglm3(options.work, options.shape)
    ours = stage.ours("ours", stage.recipe("ours", pair, LORA, gradient_checkpointing=True))
    peer = stage.peer(
        "peer fp32", pair, "float32", lora=lora_on(QKV), initial=stage.first_weights(pair, LORA),
        arguments={**hf_arguments(4, LR), "gradient_checkpointing": True},
    )  # fmt: skip
    return stage.measure([ours, peer])


def run_all_linear(options: argparse.Namespace) -> list[Record]:
    """Ours twice."""
    stage = Stage("all linear", options, batch=4, steps=2)
    pair = make_chatglm3(options.work, options.shape)
    every = {**LORA, "target_modules": [*ALL_LINEAR]}
    sides = {"ours, query_key_value": LORA, "ours, all linear layers": every}
    return stage.measure(
        [stage.ours(name, stage.recipe(name, pair, method)) for name, method in sides.items()]
    )


def run_glm4(options: argparse.Namespace) -> list[Record]:
    """A class of transformers on both sides; LoRA on our default targets of it."""
    stage = Stage("glm4", options, batch=4, steps=2)
    pair = make_glm4(options.work, options.shape)
    ours = stage.ours("ours", stage.recipe("ours", pair, LORA))
    first = stage.first_weights(pair, LORA)
    peer = stage.peer("peer fp32", pair, "float32", lora=lora_on([*QKV, "o_proj"]), initial=first)
    return stage.measure([ours, peer])


def run_ptuning(options: argparse.Namespace) -> list[Record]:
    """P-Tuning v2 with the official length, 128."""
    stage = Stage("ptuning", options, batch=4, steps=2)
    pair = make_chatglm3(options.work, options.shape)
    method = {"name": "ptuning", "dropout": 0.0}
    ours = stage.ours("ours", stage.recipe("ours", pair, method, lr=PTUNING_LR))
    peer = stage.peer(
        "peer fp32", pair, "float32", kind="prefixed", initial=stage.first_weights(pair, method),
        arguments=hf_arguments(4, PTUNING_LR),
    )  # fmt: skip
    return stage.measure([ours, peer])


def run_defaults(options: argparse.Namespace) -> list[Record]:
    """Nothing set on either side but files; the peer holds its base as stored, or in fp32."""
    from transformers import TrainingArguments

    stage = Stage("defaults", options, batch=DEFAULT_ROWS, steps=1)
    pair = make_chatglm3(options.work, options.shape)
    ours = stage.ours("ours", stage.recipe("ours", pair, None))
    # TrainingArguments and LoraConfig as they come; LoraConfig knows no targets for this class
    told = {"lora": {"target_modules": QKV}, "arguments": {}}
    each = DEFAULT_ROWS // TrainingArguments().per_device_train_batch_size
    peers = [stage.peer("peer fp32", pair, "float32", each=each, **told)]
    skipped = {}
    if has_bf16(torch.device("cpu")):
        peers.append(stage.peer("peer, base in bf16", pair, "bfloat16", each=each, **told))
    else:
        skipped["peer, base in bf16"] = HAS_NO_BF16
    return stage.measure([ours, *peers], skipped=skipped)


CASES: dict[str, Callable[[argparse.Namespace], list[Record]]] = {
    "lora 4": lambda options: run_lora("lora 4", options, batch=4, steps=2, is_full=True),
    "lora 16": lambda options: run_lora("lora 16", options, batch=16, steps=1, is_full=False),
    "checkpointing": run_checkpointing,
    "all linear": run_all_linear,
    "glm4": run_glm4,
    "ptuning": run_ptuning,
    "defaults": run_defaults,
}


def main(words: Sequence[str] | None = None) -> list[Record]:
    """Run the cases; return their records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, dest="only", help="one of them")
    parser.add_argument("--shape", choices=models.SHAPES, default="170m")
    options = measure.parse(parser, words)
    found = []
    for run in [CASES[options.only]] if options.only else CASES.values():
        found += [measure.finish(record, "train", options) for record in run(options)]
    return found


if __name__ == "__main__":
    main()
