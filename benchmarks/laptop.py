"""LoRA on a full-size ChatGLM3-6B in the official INT4 layout, one row of 256 tokens, without a GPU.

The folder, of random codes, is made once, a layer at a time: 4 GB on disk. A process of its own loads it and
trains as `glmtune train` does with gradient checkpointing. Figures:
- seconds of a step, and minutes of 100 rows;
- the peak of the resident memory, and that of its anonymous part: the rest is the mapped folder, which the
  system may drop; above the interpreter beside the forecast of `glmtune plan` for such a run;
- useful operations, the recomputation counted, as a share of what the processor reaches in multiplying
  matrices of the model's shapes, before and after the run.

    python -m benchmarks.laptop                                                      # some ten minutes
    python -m benchmarks.laptop --layers 2 --steps 2 --dry                           # shows that it runs
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Record
from benchmarks.memory import foresee, write_rows
from benchmarks.models import ROOT, SHAPES, VOCABULARY
from benchmarks.operations import NAMES, Widths, Work, matrix_peaks
from benchmarks.train_models import write_sentencepiece
from benchmarks.trainers import MIB, resting_bytes
from glmtune.data.batches import Batch
from glmtune.log import quiet
from glmtune.methods import apply_method
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration, load_base
from glmtune.models.computing import computes_in
from glmtune.models.quant import pack
from glmtune.models.recomputing import recompute
from glmtune.objectives import SftObjective
from glmtune.recipe import Lora, Train
from glmtune.training.allocations import tighten_heap
from glmtune.training.loop import fit
from glmtune.training.optim import build_optimizer, build_schedule
from glmtune.training.processes import Processes

LEARNED_SHARE = 2
"""One token in so many is learned: a prompt, then an answer of the same length."""
WATCHED_EVERY_S = 0.02


def make_folder(folder: Path, shape: dict[str, int]) -> None:
    """Random INT4 codes and half-precision scales, embeddings, norms and biases; a file for each layer."""
    torch.manual_seed(0)
    config = ChatGLMConfig(
        **shape, padded_vocab_size=VOCABULARY, seq_length=8192, add_qkv_bias=True, quantization_bit=4,
        multi_query_attention=True, multi_query_group_num=2, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        outline = ChatGLMForConditionalGeneration(config).half()
    files: dict[str, dict[str, Tensor]] = {}
    for name, empty in outline.state_dict().items():
        group = name.split(".layers.")[-1].split(".")[0] if ".layers." in name else name
        files.setdefault(f"{group}.safetensors", {})[name] = empty
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    for file, tensors in files.items():
        save_file({name: _draw(name, empty) for name, empty in tensors.items()}, folder / file)
    places = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _draw(name: str, empty: Tensor) -> Tensor:
    """Values of a parameter's shape and dtype, so that a weight is N(0, 0.02) or near it."""
    if empty.dtype == torch.int8:
        return pack(torch.randint(-7, 8, (empty.shape[0], 2 * empty.shape[1]), dtype=torch.int8))
    if name.endswith("weight_scale"):
        return torch.full_like(empty, 0.02 / 4.3, device="cpu")  # 4.3: deviation of the codes drawn
    if "norm" in name:
        return torch.ones_like(empty, device="cpu")
    return torch.empty_like(empty, device="cpu").normal_(std=0.02)


@contextmanager
def watching_memory() -> Iterator[dict[str, float]]:
    """Fill in, when the block ends, the peaks of resident and of anonymous memory in GB."""
    found: dict[str, float] = {}
    peak, is_over = 0.0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not is_over.wait(WATCHED_EVERY_S):
            peak = max(peak, _status_gb("RssAnon"))

    watcher = threading.Thread(target=look)
    watcher.start()
    yield found
    is_over.set()
    watcher.join()
    found |= {"peak_gb": _status_gb("VmHWM"), "peak_anonymous_gb": peak}


def _status_gb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(field + ":"))


def foretell(folder: Path, tokens: int) -> tuple[float, float]:
    """The forecast for such a run above the interpreter in GB: of all memory, and of the anonymous part."""
    with TemporaryDirectory() as work:
        rows = Path(work) / "rows.jsonl"
        write_rows(rows, 2, tokens)
        half = tokens // 2
        recipe = {
            "model": str(folder), "template": "chatglm3", "output": f"{work}/run", "device": "cpu",
            "data": {
                "train": str(rows), "validation": str(rows), "overlong": "cut_any",
                "max_source_tokens": half, "max_target_tokens": half,
            },
            "train": {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "gradient_checkpointing": True},
            "samples": {"prompts": []}, "retain": {"ratio": 0},
        }  # fmt: skip
        with quiet():
            found = foresee(recipe)
    parts = found["phases"]["training"]
    mapped = parts.pop("mapped")
    above = sum(parts.values()) - found["foreseer"]
    return above * MIB / 1e9, (above - mapped) * MIB / 1e9


def train(folder: Path, tokens: int, steps: int) -> dict[str, Any]:
    """Load the folder and train on one row a step, in this process."""
    tighten_heap()  # as a run of such a model does
    foretold = foretell(folder, tokens)
    resting_bytes()
    held = _status_gb("VmRSS"), _status_gb("RssAnon")
    with watching_memory() as memory:
        model = load_base(folder, device="cpu")
        loaded = {"loaded_gb": _status_gb("VmRSS"), "loaded_anonymous_gb": _status_gb("RssAnon")}
        computing = NAMES[computes_in(model)]
        tuned = apply_method(model, Lora())
        recompute(tuned, True)
        settings = Train(lr=1e-4, steps=steps)
        optimizer = build_optimizer(tuned, settings)
        objective, processes = SftObjective(tuned), Processes(precision=computing)
        batch = _draw_row(tokens)
        schedule = build_schedule(optimizer, settings, steps)
        micro = ((step, [batch]) for step in range(1, steps + 1))
        logs = list(fit(objective, objective, micro, processes.prepare(optimizer), schedule, processes))
    found = {name: round(value, 2) for name, value in (loaded | memory).items()}
    compared = {}
    for kind, before, expected in zip(("", "anonymous "), held, foretold, strict=True):
        above = memory[f"peak_{kind}gb".replace(" ", "_")] - before
        figures = {"forecast_gb": round(expected, 3), "measured_gb": round(above, 3)}
        compared[f"{kind}above the interpreter"] = figures | {"ratio": round(expected / above, 3)}
    return {
        "computing": computing,
        "step_s": [log.step_s for log in logs],
        "losses": [round(log.loss, 4) for log in logs],
        **found,
        "forecast": compared,
    }


def _draw_row(tokens: int) -> Batch:
    ids = torch.randint(3, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[: -(tokens // LEARNED_SHARE)] = -100
    return Batch(ids, labels, (0, tokens), (0,))


def run(options: argparse.Namespace) -> Record:
    """Make the folder if it is not there, measure the processor, train, measure it again."""
    cut = f", {options.layers} layers" if options.layers else ""
    record = measure.begin(f"laptop {options.shape}{cut}", "s", options)
    shape = {**SHAPES[options.shape], "num_layers": options.layers or SHAPES[options.shape]["num_layers"]}
    folder = options.work / f"chatglm3-{options.shape}-int4-{shape['num_layers']}"
    if not folder.exists():
        make_folder(folder, shape)
    write_sentencepiece(folder)
    widths = Widths.of(shape, VOCABULARY)
    work = Work([options.tokens], options.tokens // LEARNED_SHARE)
    peaks = matrix_peaks(widths, work)
    reached: dict[str, list[float]] = {name: [] for name in peaks}

    def measure_peaks() -> None:
        for name, peak in peaks.items():
            peak.run()
            reached[name].append(peak.gflops)

    measure_peaks()
    command = [sys.executable, "-m", "benchmarks.laptop", "--child", str(folder)]
    told = ["--tokens", str(options.tokens), "--steps", str(options.steps), "--threads", str(options.threads)]
    done = subprocess.run([*command, *told], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    measure_peaks()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    step_s = found.pop("step_s")
    record["sides"] = {"step": step_s[1:] or step_s}  # the first also reads the folder
    seconds = median(record["sides"]["step"])
    gflops = useful_with_recomputation(widths, work) / seconds / 1e9
    computing = found["computing"]
    record["checks"] = {
        **found,
        "minutes per 100 rows": round(100 * seconds / 60, 1),
        "GFLOP/s, recomputation counted": round(gflops),
        **{f"GFLOP/s of {name} products": [round(one) for one in reached[name]] for name in reached},
        "share of the peak": round(gflops / median(reached[computing]), 3),
    }
    return record


def useful_with_recomputation(widths: Widths, work: Work) -> float:
    """Operations of a step in which every layer's forward pass is done twice."""
    weights = widths.layers * sum(inputs * outputs for inputs, outputs in widths.products)
    squares = sum(length**2 for length in work.lengths)
    return (
        widths.useful(work) + 2.0 * weights * work.tokens + 2.0 * widths.layers * widths.attention * squares
    )


def main(words: Sequence[str] | None = None) -> Record | None:
    """Run the case; return its record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="6b")
    parser.add_argument("--layers", type=int, help="so many instead of all")
    parser.add_argument("--tokens", type=int, default=256, help="of the row")
    parser.add_argument("--steps", type=int, default=4, help="of which the first does not count")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = measure.parse(parser, words)
    if options.child:
        torch.set_num_threads(options.threads)
        print(json.dumps(train(options.child, options.tokens, options.steps)))
        return None
    return measure.finish(run(options), "laptop", options)


if __name__ == "__main__":
    main()
