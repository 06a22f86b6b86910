"""Tuning a ChatGLM3-6B of random weights: memory of the whole process, steps and tokens a second, by method.

Each case is a process of its own: it opens the folder as `glmtune train` does, then trains on random ids of
the full lengths. Memory is the peak that the driver reports for the card, over what it reported before; on a
CPU the peak of the process's resident memory.

    python benchmarks/tuning.py --work /tmp/tuning                                 # a card of 24 GB or more
    .venv/bin/python benchmarks/tuning.py --work /tmp/tiny --size tiny --steps 4   # shows that it runs

The official figures beside them: P-Tuning at int4 from 6.7 GB (ChatGLM-6B, ptuning/README.md), LoRA in bf16
14,082 MiB at batch 4 and 256 + 512 tokens (ChatGLM3, finetune_demo/README.md).
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

SHAPE: dict[str, Any] = {
    "seq_length": 8192, "add_qkv_bias": True, "multi_query_attention": True, "multi_query_group_num": 2,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "6b": {
        "num_layers": 28, "padded_vocab_size": 65024, "hidden_size": 4096, "ffn_hidden_size": 13696,
        "kv_channels": 128, "num_attention_heads": 32,
    },
    "tiny": {
        "num_layers": 2, "padded_vocab_size": 512, "hidden_size": 128, "ffn_hidden_size": 256,
        "kv_channels": 32, "num_attention_heads": 4,
    },
}  # fmt: skip
LORA = {"name": "lora", "r": 8, "alpha": 32, "dropout": 0.1}
PTUNING = {"name": "ptuning"}


@dataclass(frozen=True)
class Case:
    """What is tuned on what, and the rows' shape."""

    method: dict[str, Any]
    quant: str | None
    rows: int
    source: int
    target: int


CASES = {
    "LoRA, bf16, batch 4, 256 + 512": Case(LORA, None, 4, 256, 512),
    "QLoRA, nf4, batch 4, 256 + 512": Case(LORA, "nf4", 4, 256, 512),
    "QLoRA, nf4, batch 1, 256 + 512": Case(LORA, "nf4", 1, 256, 512),
    "P-Tuning, int4, batch 1, 64 + 64": Case(PTUNING, "int4", 1, 64, 64),
    "P-Tuning, bf16, batch 4, 256 + 512": Case(PTUNING, None, 4, 256, 512),
}


def make_folder(folder: Path, size: str) -> None:
    """Random bf16 weights in ChatGLM3's layout."""
    import torch
    from transformers import AutoModelForCausalLM

    from glmtune.models import ChatGLMConfig

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(ChatGLMConfig(**SHAPE, **SIZES[size]), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="2GB")


def measure(folder: Path, case: Case, steps: int) -> dict[str, float]:
    """Train in this process; medians without the first two steps."""
    import torch

    from glmtune.data.batches import Batch
    from glmtune.methods import apply_method, begin_pruning
    from glmtune.models import load_base
    from glmtune.objectives import SftObjective
    from glmtune.recipe import load_recipe
    from glmtune.training.loop import fit
    from glmtune.training.optim import build_optimizer, build_schedule
    from glmtune.training.processes import Processes

    processes = Processes("cuda" if torch.cuda.is_available() else "cpu", precision="bf16")
    recipe = load_recipe({"model": "m", "method": case.method, "train": {"lr": 1e-4, "steps": steps}})
    model = load_base(folder, dtype="bf16", device=str(processes.device), quant=case.quant)
    vocabulary = model.config.vocab_size
    tuned = apply_method(model, recipe.method)
    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = build_optimizer(tuned, recipe.train)
    objective = SftObjective(tuned)
    draw = torch.Generator().manual_seed(0)
    length = case.source + case.target

    def batch() -> Batch:
        ids = torch.randint(3, vocabulary, (case.rows, length), generator=draw)
        labels = ids.clone()
        labels[:, : case.source] = -100
        bounds = tuple(range(0, ids.numel() + 1, length))
        return Batch(ids.flatten(), labels.flatten(), bounds, (0,) * case.rows)

    logs = list(
        fit(
            objective,
            objective,
            ((step, [batch()]) for step in range(1, steps + 1)),
            processes.prepare(optimizer),
            build_schedule(optimizer, recipe.train, steps),
            processes,
            part=begin_pruning(tuned, recipe.method, steps),
        )
    )
    seconds = sorted(log.step_s for log in logs[2:])
    return {
        "steps_per_s": round(1 / median(seconds), 3),
        "steps_per_s_least": round(1 / seconds[-1], 3),
        "steps_per_s_most": round(1 / seconds[0], 3),
        "tokens_per_s": round(case.rows * length / median(seconds)),
        "allocated_peak_mib": round(logs[-1].peak_memory_gib * 1024),
        "loss_first": round(logs[0].loss, 3),
        "loss_last": round(logs[-1].loss, 3),
    }


def card_used_mib() -> int | None:
    """What the driver says that the first card holds; None without one."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def watch(run: Callable[[], Any]) -> tuple[Any, int | None]:
    """What `run` gives, and by how many MiB the card's memory grew at most meanwhile."""
    before, peak, done = card_used_mib(), 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, card_used_mib() or 0)

    watcher = threading.Thread(target=look)
    if before is not None:
        watcher.start()
    result = run()
    done.set()
    return result, None if before is None else peak - before


def main(work: Path, *, size: str, steps: int) -> dict[str, Any]:
    """Make the folder if it is not there, measure each case, return the figures."""
    folder = work / f"chatglm3-{size}"
    if not folder.exists():
        subprocess.run([sys.executable, __file__, "--work", str(work), "--size", size, "--make"], check=True)
    import torch

    cuda = torch.cuda.is_available()
    found: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, CPU",
        "torch": torch.__version__,
        "size": size,
        "steps": steps,
    }
    for name in CASES:
        command = [sys.executable, __file__, "--work", str(work), "--size", size, "--steps", str(steps)]
        start = time.perf_counter()
        done, grown = watch(
            lambda command=command, name=name: subprocess.run(
                [*command, "--case", name], capture_output=True, text=True, check=False
            )
        )
        if done.returncode:
            found[name] = {"error": done.stderr.strip().splitlines()[-1]}
            continue
        figures = json.loads(done.stdout.splitlines()[-1])
        found[name] = {
            **figures,
            "process_memory_mib": grown if grown is not None else figures["allocated_peak_mib"],
            "command_s": round(time.perf_counter() - start, 1),
        }
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder for the model (13 GB at full size)"
    )
    parser.add_argument("--size", choices=SIZES, default="6b")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    model_folder = options.work / f"chatglm3-{options.size}"
    if options.make:
        make_folder(model_folder, options.size)
    elif options.case:
        print(json.dumps(measure(model_folder, CASES[options.case], options.steps)))
    else:
        print(
            json.dumps(
                main(options.work, size=options.size, steps=options.steps), indent=2, ensure_ascii=False
            )
        )
