"""What the benchmarks share: sides that take turns, the machine in words, one line of figures a case.

A line of results/NAME.jsonl holds every single figure, so that ratios can be taken round by round. torch is
imported where it is needed: some sides are processes that have to begin without it.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeVar

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "llama-cpp-python", "jieba", "rouge-chinese", "nltk")
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
CAPS = (
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "FBGEMM_ENABLE_INSTRUCTIONS",
    "MKL_ENABLE_INSTRUCTIONS",
)
"""Of the environment: with one, the processor counts as another."""
OLDER = {
    "AVX2": dict(zip(CAPS, ("AVX2", "avx2", "AVX2", "AVX2"), strict=True)),
    "AVX512_BF16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
}
"""Environments in which this processor counts as an older one, by what it is then left with."""
COMMON = {"case", "rounds", "threads", "work", "dry", "cap"}
"""Options of all, which a record states elsewhere or which change no figure."""

Name = TypeVar("Name")
Record = dict[str, Any]
"""One case: `case`, `unit`, `when`, `machine`, `rounds`, `sides` (name to a figure a round), and more."""


class Side(Protocol):
    """One of those that take turns."""

    def warm(self) -> object:
        """Do a little of the work, uncounted."""

    def run(self) -> float:
        """Do the work; its figure."""


class Probe:
    """A figure of the machine that is taken in turn with the sides."""

    def __init__(self, run: Callable[[], float]) -> None:
        self.run = run

    def warm(self) -> None:
        """Needs none."""


def take_turns(sides: Mapping[Name, Side], rounds: int) -> dict[Name, list[float]]:
    """Figures of each side: every round runs all of them, one after the other."""
    for side in sides.values():
        side.warm()
    turns = [{name: side.run() for name, side in sides.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in sides}


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_bandwidth(device: str = "cpu") -> float:
    """GB a second that a sum over 1 GB reads, the best of three: what bounds a decode step."""
    import torch

    block = torch.ones(2**28, device=device)
    return float(block.nbytes / min(seconds_of(lambda: block.sum().item()) for _ in range(3)) / 1e9)


def describe_machine(threads: int, device: str) -> dict[str, Any]:
    """Processor, instructions, caps on them, threads, how busy it is, and versions."""
    import torch

    from glmtune.processor import cpu_has, name_processor

    caps = {name: os.environ[name] for name in CAPS if os.environ.get(name)}
    return {
        "processor": name_processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instructions": [name for name in INSTRUCTIONS if cpu_has(name)],
        **({"caps": caps} if caps else {}),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        **({"GPU": torch.cuda.get_device_name(device)} if device != "cpu" else {}),
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """What a benchmark is told, and in `changed` what of its own settings is not as usual."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every side")
    parser.add_argument("--work", type=Path, default=Path("/tmp/glmtune-bench"), help="for files it makes")
    parser.add_argument("--dry", action="store_true", help="print the figures, keep none")
    parser.add_argument("--cap", choices=OLDER, help="count as an older processor")
    options = parser.parse_args(words)
    if options.cap and not OLDER[options.cap].items() <= os.environ.items():
        # the libraries read it when they are loaded: begin again
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **OLDER[options.cap]})
    told = {name: value for name, value in sorted(vars(options).items()) if name not in COMMON}
    options.changed = {name: value for name, value in told.items() if value != parser.get_default(name)}
    return options


def begin(case: str, unit: str, options: argparse.Namespace) -> Record:
    """What is known of a case before it is measured; sets the threads."""
    import torch

    torch.set_num_threads(options.threads)
    return {
        "case": case,
        "unit": unit,
        "when": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(options.threads, getattr(options, "device", "cpu")),
        "rounds": options.rounds,
        "settings": options.changed,
    }


def finish(record: Record, name: str, options: argparse.Namespace) -> Record:
    """Show a case; append it to results/NAME.jsonl unless it is a dry run or one of no meaning."""
    record["sides"] = {side: [_round(one) for one in found] for side, found in record["sides"].items()}
    print(json.dumps({key: value for key, value in record.items() if key != "sides"}, indent=2))
    for side, found in record["sides"].items():
        print(f"{side:48} {median(found):10.4g} {record['unit']}  ({min(found):.4g} to {max(found):.4g})")
    if not options.dry and record["settings"].get("shape") != "test":
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return record


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def agreement(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Share of answers that are equal, over the prompts that both have answered."""
    pairs = list(zip(one, other, strict=False))
    return sum(a == b for a, b in pairs) / len(pairs)
