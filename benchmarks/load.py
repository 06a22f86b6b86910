"""Loading a folder of some gigabytes: ours, transformers' own loader, and plainly reading the bytes.

Each measurement is a process of its own, ours and the others in turn, from a warm and from a dropped page
cache, from safetensors and from .bin shards. Seconds are those of the load without imports, until every page
of the weights was touched once.

    .venv/bin/python benchmarks/load.py --work /tmp/load
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

SIZES: dict[str, Any] = {
    "num_layers": 30,
    "padded_vocab_size": 65024,
    "hidden_size": 2048,
    "ffn_hidden_size": 6912,
    "kv_channels": 128,
    "num_attention_heads": 16,
    "seq_length": 8192,
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
}
SHARD_BYTES = 400_000_000
LOADERS = ("read", "ours", "transformers")
CHUNK_BYTES = 2**24
PAGE_BYTES = 4096


def make_folders(work: Path) -> list[Path]:
    """The same random fp16 weights as safetensors and as .bin shards, in the official layout."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from glmtune.models import ChatGLMConfig

    folders = [work / "safetensors", work / "bin"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ChatGLMConfig(**SIZES), dtype=torch.float16)
    model.save_pretrained(folders[0], max_shard_size=SHARD_BYTES)
    folders[1].mkdir()
    for path in folders[0].iterdir():
        if path.suffix == ".safetensors":
            torch.save(load_file(path), folders[1] / _bin_name(path.name))
        elif path.name.endswith("index.json"):
            (folders[1] / "pytorch_model.bin.index.json").write_text(_bin_name(path.read_text("utf-8")))
        else:
            (folders[1] / path.name).write_bytes(path.read_bytes())
    return folders


def _bin_name(text: str) -> str:
    return text.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")


def weight_files(folder: Path) -> list[Path]:
    """The files of weights of a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def drop_cache(folder: Path) -> None:
    """Ask the kernel to forget the files' pages."""
    os.sync()
    for path in weight_files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def anonymous_bytes() -> int:
    """This process's own memory, files that are mapped not counted."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon")) * 1024


def measure(loader: str, folder: Path) -> dict[str, float]:
    """Load once in this process; seconds, and the peak of anonymous memory over what there was before."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from glmtune.models import load_base

    disable_progress_bar()
    before, peak, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    if loader == "read":
        for path in weight_files(folder):
            with path.open("rb", buffering=0) as file:
                while file.read(CHUNK_BYTES):
                    pass
    elif loader == "ours":
        model: Any = load_base(folder, dtype=torch.float16, device="cpu")
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, trust_remote_code=False)
    if loader != "read":  # transformers leaves the weights mapped: whole only once every page was read
        for parameter in model.parameters():
            parameter.detach().view(-1).view(torch.uint8)[::PAGE_BYTES].sum()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    held = 0 if loader == "read" else sum(p.nbytes for p in model.parameters())
    return {"seconds": seconds, "peak_over_weights": (peak - before) / held if held else 0.0}


def main(work: Path, *, rounds: int) -> dict[str, Any]:
    """Make the folders if they are not there, measure each loader in turn, return medians and spreads."""
    folders = [work / "safetensors", work / "bin"]
    if not all(folder.exists() for folder in folders):
        folders = make_folders(work)
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "bytes": sum(path.stat().st_size for path in weight_files(folders[0])),
        "rounds": rounds,
    }
    for folder in folders:
        for cache in ("warm", "cold"):
            runs: dict[str, list[dict[str, float]]] = {loader: [] for loader in LOADERS}
            for loader in LOADERS * rounds:
                if cache == "cold":
                    drop_cache(folder)
                command = [sys.executable, __file__, "--work", str(folder), "--loader", loader]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[loader].append(json.loads(done.stdout.splitlines()[-1]))
            found[f"{folder.name}, {cache}"] = {loader: _summary(lines) for loader, lines in runs.items()}
    return found


def _summary(runs: list[dict[str, float]]) -> dict[str, float]:
    seconds = [run["seconds"] for run in runs]
    return {
        "median_s": round(median(seconds), 2),
        "least_s": round(min(seconds), 2),
        "most_s": round(max(seconds), 2),
        "peak_over_weights": round(max(run["peak_over_weights"] for run in runs), 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for two times some gigabytes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loader", choices=LOADERS, help="measure once, of the folder --work")
    options = parser.parse_args()
    if options.loader:
        print(json.dumps(measure(options.loader, options.work)))
    else:
        print(json.dumps(main(options.work, rounds=options.rounds), indent=2))
