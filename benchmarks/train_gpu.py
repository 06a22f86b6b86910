"""LoRA on a GPU, full-size random weights: speed beside products alone and the peer; memory of the process.

Each side is a process of its own. Ours opens the folder and trains by glmtune's own loop, its rows packed;
the peer is transformers' class with the same weights, PEFT and HF Trainer, its rows padded, with each
attention that it has. Rows are random ids of ADGEN's lengths: of its rows where ../shared has them, else
drawn about their means. Memory is the highest that the driver reports for the card, over what it reported
before; on a CPU the resident memory.

    python -m benchmarks.train_gpu --work /tmp/train-gpu                  # a card of 48 GB; 31 GB of disk
    python -m benchmarks.train_gpu --work /tmp/train-gpu --size 6b        # 13 GB of disk
    python -m benchmarks.train_gpu --size tiny --steps 4 --dry            # shows that it runs, on a CPU too

The official figures beside them: P-Tuning at int4 from 6.7 GB (ChatGLM-6B, ptuning/README.md), LoRA in bf16
14,082 MiB at batch 4 (ChatGLM3, finetune_demo/README.md).
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import measure, models
from benchmarks.measure import Record
from benchmarks.operations import MatrixPeak, Widths, Work
from benchmarks.trainers import train_with_hf

Lengths = list[tuple[int, int]]
"""Tokens of each row's prompt and answer."""
LORA: dict[str, Any] = {"name": "lora", "r": 8, "alpha": 32, "dropout": 0.1}
PTUNING: dict[str, Any] = {"name": "ptuning"}
QKV = ["q_proj", "k_proj", "v_proj"]
ADGEN_TOKENS = (44, 76)
"""Mean of a prompt and of a reference, in ChatGLM3's tokens."""
WARM_STEPS = 2
LOOK_S = 0.05
MIB = 2**20
SHAPES: dict[str, dict[str, int]] = {
    "6b": models.SHAPES["6b"],
    "9b": {**models.SHAPES["6b"], "num_layers": 40},
    "tiny": {
        "num_layers": 2, "hidden_size": 128, "ffn_hidden_size": 256, "num_attention_heads": 4,
        "kv_channels": 32,
    },
}  # fmt: skip
VOCABULARIES = {"6b": 65024, "9b": 151552, "tiny": 512}
TEMPLATES = {"6b": "chatglm3", "9b": "glm4", "tiny": "chatglm3"}
SIZES = {"all": ("6b", "9b"), "6b": ("6b",), "9b": ("9b",), "tiny": ("tiny",)}


@dataclass(frozen=True)
class Side:
    """What is trained on what; tokens of a micro-batch, or rows of equal length."""

    kind: str = "ours"
    """ours, peer, peak."""
    method: str = "lora"
    quant: str | None = None
    tokens: int = 8192
    rows: int = 0
    """So many rows of 140 tokens; 0: rows of ADGEN's lengths, `tokens` in all."""
    is_recomputed: bool = False
    attention: str = "sdpa"
    batch: int = 0
    """Rows of the peer's batch; 0: all."""
    kernel_rows: int | None = None
    """Most rows for which Triton's kernels multiply with codes, else they are expanded; None: as glmtune has
    it."""


SPEED = {
    "ours": Side(),
    "matrix peak bf16": Side("peak"),
    "peer, sdpa": Side("peer"),
    "peer, sdpa, 16 rows": Side("peer", batch=16),
    "peer, flash_attention_2": Side("peer", attention="flash_attention_2"),
}
SMALL = {
    "ours, 4 x 140 tokens": Side(rows=4, is_recomputed=True),
    "ours, recomputed": Side(is_recomputed=True),
    "ours, nf4, 2k tokens": Side(quant="nf4", tokens=2048, is_recomputed=True),
    "ours, P-Tuning, int4, 1 x 140 tokens": Side(method="ptuning", quant="int4", rows=1, is_recomputed=True),
}
KERNELS = {
    f"ours, {quant}, {size}, {how}": Side(quant=quant, is_recomputed=True, kernel_rows=most, **rows)
    for quant in ("int8", "int4")
    for size, rows in {"4 x 140 tokens": {"rows": 4}, "2k tokens": {"tokens": 2048}}.items()
    for how, most in {"by kernels": 4096, "expanded": 0}.items()
}
"""On both sides of `triton_products.MOST_ROWS`, as it would be if that limit lay elsewhere."""
LARGE = {
    "ours": Side(),
    "matrix peak bf16": Side("peak"),
    "ours, nf4, 2k tokens": Side(quant="nf4", tokens=2048, is_recomputed=True),
}
ALL = {**SPEED, **SMALL, **KERNELS}
SIDES = {"6b": ALL, "9b": LARGE, "tiny": ALL}


def device() -> str:
    """The first card, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_folder(folder: Path, shape: str) -> None:
    """Random bf16 weights in the official layout."""
    from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration

    torch.manual_seed(0)
    config = ChatGLMConfig(
        **SHAPES[shape], padded_vocab_size=VOCABULARIES[shape], seq_length=8192, add_qkv_bias=True,
        multi_query_attention=True, multi_query_group_num=2, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device()):
        model: Any = ChatGLMForConditionalGeneration(config)
    torch.set_default_dtype(before)
    model.save_pretrained(folder, max_shard_size="2GB")


def find_lengths(work: Path) -> tuple[str, Lengths]:
    """Whose lengths they are, and those of some thousand rows."""
    if (models.SHARED / "data/AdvertiseGen").is_dir():
        asked = models.read_adgen(1070, work).asked
        return "ADGEN's rows", [(len(p), n) for p, n in zip(asked.prompts, asked.lengths, strict=True)]
    draw = random.Random(0)
    drawn = [tuple(max(8, round(draw.gauss(mean, mean / 3))) for mean in ADGEN_TOKENS) for _ in range(1070)]
    return "drawn about ADGEN's means", [(prompt, answer) for prompt, answer in drawn]


def batches_of(side: Side, lengths: Lengths) -> Iterator[Lengths]:
    """The rows of one step after the other."""
    if side.rows:
        while True:
            yield [(64, 76)] * side.rows
    rows: Lengths = []
    i = 0
    while True:
        row = lengths[i % len(lengths)]
        if sum(map(sum, [*rows, row])) > side.tokens:
            yield rows
            rows = []
        rows.append(row)
        i += 1


def steps_of(side: Side, lengths: Lengths, steps: int) -> list[Lengths]:
    """The rows of each step; the peer takes ours in the same order, a fixed number of them at a time."""
    taken = [rows for _, rows in zip(range(steps), batches_of(side, lengths), strict=False)]
    if side.kind != "peer":
        return taken
    rows = [row for one in taken for row in one]
    each = side.batch or len(rows) // steps
    return [rows[i * each : (i + 1) * each] for i in range(steps)]


def limit_kernels(most_rows: int) -> None:
    """Have Triton's kernels multiply with codes up to so many rows; end the process where they do not run."""
    from glmtune.models import triton_products

    triton_products.MOST_ROWS = triton_products.FEW_ROWS = most_rows
    codes, scale = torch.ones(1, 64, dtype=torch.int8, device=device()), torch.ones(1, device=device())
    half = torch.float16
    if most_rows and triton_products.multiply_codes(codes.to(half), codes, scale.to(half), 8) is None:
        raise SystemExit("Triton's kernels do not run here")


def take_ours(folder: Path, shape: str, side: Side, taken: Sequence[Lengths]) -> list[float]:
    """Seconds of each step of glmtune's loop."""
    from glmtune.data.batches import Batch
    from glmtune.methods import apply_method, begin_pruning
    from glmtune.models import load_base
    from glmtune.models.recomputing import recompute
    from glmtune.objectives import build_objective
    from glmtune.recipe import load_recipe
    from glmtune.training.loop import fit
    from glmtune.training.optim import build_optimizer, build_schedule
    from glmtune.training.processes import Processes

    if side.kernel_rows is not None:
        limit_kernels(side.kernel_rows)
    processes = Processes(device(), precision="bf16")
    method = {"lora": LORA, "ptuning": PTUNING}[side.method]
    recipe = load_recipe({"model": "m", "method": method, "train": {"lr": 1e-4, "steps": len(taken)}})
    model = load_base(
        folder, dtype="bf16", device=str(processes.device), quant=side.quant, template=TEMPLATES[shape]
    )
    tuned = apply_method(model, recipe.method)
    recompute(tuned, side.is_recomputed)
    optimizer = build_optimizer(tuned, recipe.train)
    objective = build_objective(tuned, recipe.objective)
    draw = torch.Generator().manual_seed(0)

    def batch(rows: Lengths) -> Batch:
        bounds = [0]
        for row in rows:
            bounds.append(bounds[-1] + sum(row))
        ids = torch.randint(3, VOCABULARIES[shape], (bounds[-1],), generator=draw)
        labels = ids.clone()
        for start, (prompt, _) in zip(bounds, rows, strict=False):
            labels[start : start + prompt] = -100
        return Batch(ids, labels, tuple(bounds), (0,) * len(rows))

    logs = fit(
        objective,
        objective,
        ((step, [batch(rows)]) for step, rows in enumerate(taken, start=1)),
        processes.prepare(optimizer),
        build_schedule(optimizer, recipe.train, len(taken)),
        processes,
        part=begin_pruning(tuned, recipe.method, len(taken)),
    )
    return [log.step_s for log in logs]


class Watch:
    """Times the steps of HF Trainer, which reads each step's loss and so waits for it."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def hold(self) -> None:
        """Needs none: the driver is asked."""

    def wait(self, **_: object) -> None:
        """Begin."""
        self.ends.append(time.perf_counter())

    def step(self, _: float) -> None:
        """End of a step."""
        self.ends.append(time.perf_counter())


def take_peer(folder: Path, shape: str, side: Side, taken: Sequence[Lengths]) -> list[float]:
    """Seconds of each step of HF Trainer's."""
    from peft import LoraConfig, get_peft_model

    from glmtune.models import load_base

    if side.attention == "flash_attention_2" and not find_spec("flash_attn"):
        raise SystemExit("flash_attn is not installed")
    model = models.as_glm(
        load_base(folder, dtype="bf16", device=device(), template=TEMPLATES[shape])
    ).to(device())  # fmt: skip
    model.set_attn_implementation(side.attention)
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=0.1, target_modules=QKV)
    draw = random.Random(0)
    path = folder.parent / f"rows-{shape}.json"
    written = []
    for prompt, answer in (row for rows in taken for row in rows):
        ids = [draw.randrange(3, VOCABULARIES[shape]) for _ in range(prompt + answer)]
        written.append({"input_ids": ids, "labels": [*[-100] * prompt, *ids[prompt:]]})
    path.write_text(json.dumps(written), encoding="utf-8")
    arguments = {
        "per_device_train_batch_size": len(taken[0]), "learning_rate": 1e-4, "max_steps": len(taken),
        "bf16": True, "save_strategy": "no", "use_cpu": device() == "cpu",
    }  # fmt: skip
    watch = Watch()
    train_with_hf(
        get_peft_model(model, lora), {"rows": path, "folder": str(folder), "arguments": arguments}, watch
    )
    return [end - start for start, end in zip(watch.ends, watch.ends[1:], strict=False)]


def take_peak(_: Path, shape: str, __: Side, taken: Sequence[Lengths]) -> list[float]:
    """Seconds that the useful operations of each step would take at the products' speed."""

    def seconds(rows: Lengths) -> float:
        work = Work([sum(row) for row in rows], sum(answer for _, answer in rows))
        widths = Widths.of(SHAPES[shape], VOCABULARIES[shape])
        return work.tokens / MatrixPeak(widths, work, torch.bfloat16, device()).run()

    return [seconds(rows) for rows in taken]


def measure_side(folder: Path, shape: str, name: str, steps: int) -> dict[str, Any]:
    """Tokens a second of each step but the first ones, in this process."""
    side = SIDES[shape][name]
    whose, lengths = find_lengths(folder.parent)
    taken = steps_of(side, lengths, steps)
    take = {"ours": take_ours, "peer": take_peer, "peak": take_peak}[side.kind]
    seconds = take(folder, shape, side, taken)
    figures = [sum(map(sum, rows)) / s for rows, s in zip(taken, seconds, strict=True)]
    return {"tokens_per_s": figures[WARM_STEPS:], "rows": whose, "resident_mib": _resident_mib()}


def _resident_mib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def card_used_mib() -> int | None:
    """What the driver says that the first card holds; None without one."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def watch_card(run: Callable[[], Any]) -> tuple[Any, int | None]:
    """What `run` gives, and by how many MiB the card's memory grew at most meanwhile."""
    before, peak, done = card_used_mib(), 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(LOOK_S):
            peak = max(peak, card_used_mib() or 0)

    watcher = threading.Thread(target=look)
    if before is not None:
        watcher.start()
    result = run()
    done.set()
    return result, None if before is None else peak - before


def run_apart(options: argparse.Namespace, shape: str, *words: str) -> tuple[Any, int | None]:
    """This file with these words, in a process of its own, and the growth of the card's memory."""
    command = [sys.executable, "-m", "benchmarks.train_gpu", "--work", str(options.work), "--shape", shape]
    command += ["--steps", str(options.steps), *words]
    return watch_card(
        lambda: subprocess.run(command, capture_output=True, text=True, check=False, cwd=models.ROOT)
    )


def run_shape(shape: str, options: argparse.Namespace) -> list[Record]:
    """All sides of a shape, one after the other; a record of speed and one of memory."""
    record = measure.begin(f"train gpu {shape}", "tokens/s", options)
    if not (options.work / shape / "config.json").exists():
        made, _ = run_apart(options, shape, "--make")
        if made.returncode:
            raise SystemExit(made.stderr[-2000:])
    speed: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    skipped: dict[str, str] = {}
    for name in SIDES[shape]:
        done, grown = run_apart(options, shape, "--side", name)
        if done.returncode:
            skipped[name] = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"  {name}: {skipped[name]}", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        speed[name] = found["tokens_per_s"]
        memory[name] = [float(found["resident_mib"] if grown is None else grown)]
        print(f"  {name}: {median(speed[name]):.0f} tokens/s, {memory[name][0]:.0f} MiB", flush=True)
        record["settings"] = {"rows": found["rows"], "steps": options.steps}
    shared = {key: record[key] for key in ("when", "machine", "rounds", "settings")}
    record |= {"sides": speed, "skipped": skipped}
    return [record, {**shared, "case": f"train gpu {shape}, memory", "unit": "MiB", "sides": memory}]


def main(words: Sequence[str] | None = None) -> list[Record]:
    """Measure the shapes of a size; return their records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="all")
    parser.add_argument("--steps", type=int, default=7, help=f"of each side; {WARM_STEPS} do not count")
    parser.add_argument("--shape", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    options = measure.parse(parser, words)
    if options.make:
        make_folder(options.work / options.shape, options.shape)
        return []
    if options.side:
        folder = options.work / options.shape
        print(json.dumps(measure_side(folder, options.shape, options.side, options.steps)))
        return []
    options.device = device()
    found: list[Record] = []
    for shape in SIZES[options.size]:
        keeping = argparse.Namespace(**{**vars(options), "dry": options.dry or shape == "tiny"})
        found += [measure.finish(record, "train_gpu", keeping) for record in run_shape(shape, options)]
    return found


if __name__ == "__main__":
    main()
