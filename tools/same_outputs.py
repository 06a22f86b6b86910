"""Whether two checkouts of this project make the same outputs, to the bit.

    python tools/same_outputs.py BEFORE AFTER
    python tools/same_outputs.py BEFORE AFTER --only export goldens --keep /tmp/same

Both run the cases of `same_cases.py`, one after the other, as the same path; every file that they write and
all that they say is compared. What cannot be the same is masked: times, rates, memory. `--only` takes groups
(tiny, goldens, a family's), verbs and names of cases. `--keep` leaves the outputs in a folder, and takes
those of BEFORE from there if its code and this script are the same. Exit code 1 if anything differs.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.image import imread
from safetensors import safe_open
from torch import Tensor

NEW_LINES = {
    "recipe.yaml": [re.compile(r"(?m)^objective:\n  name: sft\n")],
    "settings-all.out": [
        re.compile(r"(?m)^(?:objective\..*\n)+\n"),
        re.compile(r"(?<=Use only the first so many training rows), of several files.*"),
    ],
}
"""By a file's name: what may be there after where before has no such line. The objective is a setting since
then, and `data.train` may be several files."""
ROUNDED = re.compile(r"(exports/[^/]*-merged|half)/[^/]*\.safetensors$")
"""Merged weights may be one unit in the last place of their type apart: the merge is its definition now,
where it was PEFT's, which adds in another order."""
MASKED_KEYS = {
    *("step_s", "tokens_per_s", "peak_memory_gib", "memory_gib", "train_s"),
    *("steps_per_s", "seconds", "other_seconds"),
}
"""Figures of the machine and the moment."""
MASKED_PLACES = re.compile(r"weights\[\d+\]\[2\]$")
"""When a file was changed last, in nanoseconds: by it an evaluation knows its weights again."""
SEEDED = "import random, numpy; random.seed(0); numpy.random.seed(0)\n"
"""Python's and NumPy's random numbers are in every checkpoint, and no run draws from them."""
MASKED_TEXT = [
    (re.compile(r"speed: [\d.]+ step/s"), "speed: # step/s"),
    (re.compile(r"ETA: [\d:]+"), "ETA: #"),
    (re.compile(r"tokens/s: [\d,]+"), "tokens/s: #"),
    (re.compile(r"\bpeak( memory:)? [\d.]+ GiB"), r"peak\1 # GiB"),
    (re.compile(r"train run time: .*"), "train run time: #"),
    (
        re.compile(r"[\d.]+ times (?:faster|slower): after \d+ s in place of \d+ s"),
        "# times faster: after # s in place of # s",
    ),
    (re.compile(r"(finished|stopped|broken)  \d{4}-\d\d-\d\d \d\d:\d\d$"), r"\1  #"),
]
TIMED_ROW = re.compile(r"│ (?:training time|steps/s|tokens/s|peak memory) ")
TIMED_CELL = re.compile(r"(?<=│ )[\d:.,]+( GiB)? +(?=│)")
"""Of the table of `compare`: rows of times and memory, and what in a cell of theirs is a figure."""
TIMED_PICTURE = "compare.png"
"""Its right half, below the head, is drawn over the training time."""
MEASURED_FILES = {"memory.json", "memory.png", "report.html"}
"""Files that hold nothing but what was measured, or show all of it."""
HEAD_PART = 9
"""The head has so small a part of the picture's height."""


MOST = 6
"""Differences that are told of a file."""


def compare_folders(before: Path, after: Path) -> Iterator[str]:
    """A line for every difference between two folders: files, links, tensors, values, texts."""
    names = [{path.relative_to(folder) for path in _walk(folder)} for folder in (before, after)]
    for name in sorted(names[0] | names[1]):
        if name not in names[1]:
            yield f"{name}: only before"
        elif name not in names[0]:
            yield f"{name}: only after"
        else:
            problems = list(compare_files(before / name, after / name, str(name)))
            yield from (f"{name}: {problem}" for problem in problems[:MOST])
            if len(problems) > MOST:
                yield f"{name}: {len(problems) - MOST} more"


def compare_files(before: Path, after: Path, name: str) -> Iterator[str]:
    """What differs in a file, `name` being its place in the outputs."""
    if before.name in MEASURED_FILES:
        return
    if before.is_symlink() or after.is_symlink():
        links = [path.readlink() if path.is_symlink() else None for path in (before, after)]
        if links[0] != links[1]:
            yield f"leads to {links[1]}, led to {links[0]}"
    elif before.read_bytes() == after.read_bytes():
        return
    elif before.suffix == ".safetensors":
        yield from _compare_tensors(before, after, ulps=1 if ROUNDED.search(name) else 0)
    elif before.suffix in (".pt", ".bin"):
        yield from _compare_values(*(_unpickle(path) for path in (before, after)), place="")
    elif before.suffix == ".json":
        yield from _compare_values(
            *(json.loads(path.read_text("utf-8")) for path in (before, after)), place=""
        )
    elif before.name == TIMED_PICTURE:
        yield from _compare_pictures(before, after)
    else:
        yield from _compare_texts(before, after)


def _walk(folder: Path) -> Iterator[Path]:
    """Files and links; folders only where they are empty."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            yield path


def _compare_tensors(before: Path, after: Path, *, ulps: int) -> Iterator[str]:
    with safe_open(before, "pt") as old, safe_open(after, "pt") as new:
        if old.metadata() != new.metadata():
            yield f"metadata {new.metadata()}, was {old.metadata()}"
        if list(old.keys()) != list(new.keys()):
            yield f"tensors {sorted(set(old.keys()) ^ set(new.keys())) or 'in another order'}"
        for key in sorted(set(old.keys()) & set(new.keys())):
            yield from _compare_tensor(old.get_tensor(key), new.get_tensor(key), key, ulps=ulps)


def _compare_tensor(old: Tensor, new: Tensor, place: str, *, ulps: int = 0) -> Iterator[str]:
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        yield f"{place}: {new.dtype} {tuple(new.shape)}, was {old.dtype} {tuple(old.shape)}"
        return
    distance = _distance(old, new)
    if (far := int(distance.max()) if distance.numel() else 0) > ulps:
        count = int((distance > ulps).sum())
        yield f"{place}: {count} of {old.numel()} values differ, by {far} units in the last place at most"


def _distance(old: Tensor, new: Tensor) -> Tensor:
    """How many representable numbers lie between the values of two tensors of a type, a sign bit counted."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    whole = [value.contiguous().flatten().view(torch.uint8) for value in (old, new)]
    if not old.is_floating_point() or old.element_size() == 8:
        return (whole[0] != whole[1]).long()
    bits = [value.contiguous().flatten().view(kinds[old.element_size()]).long() for value in (old, new)]
    smallest = -(1 << (8 * old.element_size() - 1))
    ordered = [torch.where(value < 0, smallest - value, value) for value in bits]
    distance = (ordered[0] - ordered[1]).abs()
    return torch.where((distance == 0) & (bits[0] != bits[1]), 1, distance)  # 0.0 and -0.0


def _unpickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _compare_values(old: Any, new: Any, place: str) -> Iterator[str]:
    """Two values read from files: types, order of keys, numbers to the last bit."""
    if MASKED_PLACES.fullmatch(place):
        return
    if type(old) is not type(new):
        yield f"{place}: {new!r}, was {old!r}"
    elif isinstance(old, Tensor):
        yield from _compare_tensor(old, new, place)
    elif isinstance(old, dict):
        if list(old) != list(new):
            yield f"{place}: keys {list(new)}, were {list(old)}"
        for key in [key for key in old if key in new and key not in MASKED_KEYS]:
            yield from _compare_values(old[key], new[key], f"{place}.{key}".strip("."))
    elif isinstance(old, list | tuple):
        if len(old) != len(new):
            yield f"{place}: {len(new)} values, were {len(old)}"
        for number, pair in enumerate(zip(old, new, strict=False)):
            yield from _compare_values(*pair, f"{place}[{number}]")
    elif repr(old) != repr(new):
        yield f"{place}: {new!r}, was {old!r}"


def _compare_pictures(before: Path, after: Path) -> Iterator[str]:
    """Two pictures, whose right half below the head shows times."""
    old, new = (imread(path) for path in (before, after))
    if old.shape != new.shape:
        yield f"{new.shape} pixels, were {old.shape}"
        return
    differs = (old != new).any(axis=-1)
    height, width = differs.shape
    differs[height // HEAD_PART :, width // 2 :] = False
    if count := int(differs.sum()):
        yield f"{count} pixels differ outside of what shows times"


def _compare_texts(before: Path, after: Path) -> Iterator[str]:
    try:
        texts = [path.read_text("utf-8") for path in (before, after)]
    except UnicodeDecodeError:
        yield "other bytes"
        return
    for pattern in NEW_LINES.get(before.name, []):
        if not pattern.search(texts[0]):
            texts[1] = pattern.sub("", texts[1])
    lines = [_masked(text.splitlines(), before.suffix) for text in texts]
    if lines[0] == lines[1]:
        return
    for number, (old, new) in enumerate(zip(*lines, strict=False), start=1):
        if old != new:
            yield f"line {number}: {new!r}, was {old!r}"
    if len(lines[0]) != len(lines[1]):
        yield f"{len(lines[1])} lines, were {len(lines[0])}"


def _masked(lines: list[str], suffix: str) -> list[str]:
    """A text's lines without the figures of the machine and the moment."""
    if suffix == ".jsonl":
        return [json.dumps(_without_times(json.loads(line))) for line in lines]
    lines = [TIMED_CELL.sub(r"#\1 ", line) if TIMED_ROW.match(line) else line for line in lines]
    for pattern, mask in MASKED_TEXT:
        lines = [pattern.sub(mask, line) for line in lines]
    return lines


def _without_times(line: Any) -> Any:
    if not isinstance(line, dict):
        return line
    return {key: "#" if key in MASKED_KEYS else value for key, value in line.items()}


class Bench:
    """A folder in which each checkout in turn is `code`, runs in `run`, and leaves that as its own."""

    def __init__(self, folder: Path, wanted: list[str], jobs: int = 1) -> None:
        self.folder = folder
        self._jobs = jobs
        self._wanted = wanted

    def make_models(self, checkout: Path) -> None:
        """The models of the cases, made by a checkout's code, the same for both."""
        if not (self.folder / "models").exists():
            self._lay(checkout)
            self._python("models", "../models.partial")
            (self.folder / "models.partial").rename(self.folder / "models")

    def outputs(self, checkout: Path, name: str, *, keep: bool = False) -> Path:
        """The folder of what a checkout makes; with `keep` an earlier one, if nothing has changed."""
        kept, sign = self.folder / name, self.folder / f"{name}.sha256"
        digest = self._digest(checkout)
        if keep and kept.is_dir() and sign.is_file() and sign.read_text() == digest:
            print(f"{name}: as kept in {kept}", flush=True)
            return kept
        sign.unlink(missing_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        self._lay(checkout)
        start = time.perf_counter()
        self._python("run", str(self._jobs), *self._wanted)
        (self.folder / "run").rename(kept)
        sign.write_text(digest)
        print(f"{name}: {checkout}, {time.perf_counter() - start:.0f} s", flush=True)
        return kept

    def _lay(self, checkout: Path) -> None:
        """Copy a checkout's code, so that its path is the other's too and nobody changes it meanwhile."""
        shutil.rmtree(self.folder / "code", ignore_errors=True)
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        (self.folder / "run").mkdir()
        for part in ("src", "examples", "tests"):
            shutil.copytree(
                checkout / part, self.folder / "code" / part, ignore=shutil.ignore_patterns("__pycache__")
            )

    def _python(self, *words: str) -> None:
        code = self.folder / "code"
        (code / "sitecustomize.py").write_text(SEEDED)
        places = [str(code), str(code / "src"), *([str(code / "tests")] if words[0] == "models" else [])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "COLUMNS": "100",
        }  # fmt: skip
        script = Path(__file__).with_name("same_cases.py")
        subprocess.run(
            [sys.executable, str(script), *words], cwd=self.folder / "run", env=environment, check=True
        )

    def _digest(self, checkout: Path) -> str:
        """Of all that the outputs come from."""
        digest = hashlib.sha256(" ".join([torch.__version__, *self._wanted]).encode())
        here = Path(__file__).with_name("same_cases.py")
        for path in [
            here,
            *sorted((checkout / "src").rglob("*")),
            *sorted((checkout / "examples").rglob("*")),
        ]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


def main() -> None:
    """Run both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="groups, verbs, cases")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the outputs stay")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="groups at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-") as folder:
        bench = Bench((options.keep or Path(folder)).absolute(), options.only, options.jobs)
        bench.folder.mkdir(parents=True, exist_ok=True)
        bench.make_models(options.before.absolute())
        before = bench.outputs(options.before.absolute(), "before", keep=bool(options.keep))
        after = bench.outputs(options.after.absolute(), "after")
        problems = list(compare_folders(before, after))
        files = sum(1 for _ in _walk(after))
    print("\n".join(problems))
    print(f"{len(problems)} differences in {files} files")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
