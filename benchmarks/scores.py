"""Scoring answers: ours, and jieba, rouge-chinese and nltk as the two official scripts call them.

Each measurement is a process of its own, so that nothing is kept from one to the next; ours and theirs take
turns. Figures are CPU seconds, imports and dictionary included. The texts are 1,070 pairs of ADGEN adverts
from ../shared (or $GLMTUNE_SHARED), where they are there: the references of its dev split, and other adverts
as answers. Else they are stretches, as long, of this project's own Chinese pages, which repeat themselves:
that helps ours. Asserts that both give the same values.

    python -m benchmarks.scores
    python -m benchmarks.scores --num-pairs 8 --rounds 1 --dry      # shows that it runs
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Record, begin, finish, parse, take_turns

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("GLMTUNE_SHARED", ROOT.parent / "shared")) / "data/AdvertiseGen"
NUM_PAIRS = 1070
SIDES = ("official", "ours")
TASKS = ("load", "cut", "thudm", "chatglm3")
"""Packages and dictionary; these and words of all texts; these and all scores of one variant."""

Pairs = list[tuple[str, str]]


def read_pairs() -> Pairs:
    """Answers and references of the benchmark."""
    if not SHARED.is_dir():
        return make_pairs()
    answers, references = (_summaries(SHARED / name) for name in ("train_first5000.json", "dev.json"))
    return list(zip(answers[:NUM_PAIRS], references[:NUM_PAIRS], strict=True))


def make_pairs() -> Pairs:
    """Stretches of the project's Chinese pages, of the lengths of ADGEN's adverts: about 111, 60 to 240."""
    pages = sorted([*ROOT.glob("*.zh.md"), *ROOT.glob("docs/*.zh.md")])
    text = "".join(path.read_text(encoding="utf-8") for path in pages).replace("\n", "")
    rng = random.Random(0)

    def stretch() -> str:
        start = rng.randrange(len(text) - 250)
        return text[start : start + round(min(max(rng.gauss(111, 25), 60), 240))]

    return [(stretch(), stretch()) for _ in range(NUM_PAIRS)]


def _summaries(path: Path) -> list[str]:
    return [json.loads(line)["summary"] for line in path.read_text(encoding="utf-8").splitlines()]


def measure(side: str, task: str, path: Path) -> dict[str, Any]:
    """Do one task in this process on a file of pairs; CPU and wall seconds, and the scores."""
    pairs = json.loads(path.read_text(encoding="utf-8"))
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    cut, score = _official() if side == "official" else _ours()
    scores: Any = {}
    if task == "load":
        cut("好")
    elif task == "cut":
        for pair in pairs:
            for text in pair:
                cut(text)
    elif task == "both":
        scores = _score_both(pairs)
    else:
        scores = score(*zip(*pairs, strict=True), task)
    return {
        "cpu_s": time.process_time() - cpu_s,
        "wall_s": time.perf_counter() - wall_s,
        "scores": scores,
    }


def _official() -> tuple[Callable[[str], Any], Callable[..., Any]]:
    sys.path.insert(0, str(ROOT / "tests"))
    import official_scores

    return official_scores.jieba.lcut, official_scores.score


def _ours() -> tuple[Callable[[str], Any], Callable[..., Any]]:
    from glmtune.evaluation.metrics import score
    from glmtune.evaluation.words import cut

    return cut, score


def _score_both(pairs: Pairs) -> Any:
    from glmtune.evaluation.metrics import score_variants

    return score_variants(*zip(*pairs, strict=True))


def measure_apart(side: str, task: str, path: Path) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scores", "--measure", side, task, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Scoring:
    """A task of one side, as a side that takes turns; its figure is CPU seconds."""

    def __init__(self, side: str, task: str, path: Path) -> None:
        """`path`: a JSON file of answers and references."""
        self.job = side, task, path
        self.scores: dict[str, Any] = {}

    def warm(self) -> None:
        """Let jieba write its cache file and the system read the packages, once for all tasks of a side."""
        if self.job[1] == "load":
            measure_apart(*self.job)

    def run(self) -> float:
        """CPU seconds of a fresh process."""
        found = measure_apart(*self.job)
        self.scores = found["scores"]
        return float(found["cpu_s"])


def write_pairs(pairs: Pairs, work: Path) -> Path:
    """For the other processes."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "pairs.json"
    path.write_text(json.dumps(pairs), encoding="utf-8")
    return path


def run_scores(options: argparse.Namespace) -> Record:
    """Every task of both sides in turn."""
    record = begin("scores", "CPU s", options)
    path = write_pairs(read_pairs()[: options.num_pairs], options.work)
    jobs = [(side, task) for task in TASKS for side in SIDES] + [("ours", "both")]
    sides = {job: Scoring(*job, path) for job in jobs}
    found = take_turns(sides, options.rounds)
    record["sides"] = {f"{task}, {side}": found[side, task] for side, task in jobs}
    for variant in ("thudm", "chatglm3"):
        official, ours = (sides[side, variant].scores for side in SIDES)
        assert ours == {**official, "num_empty": 0}, variant
        assert sides["ours", "both"].scores[variant] == ours, variant
    record["checks"] = {"values equal": True, "text": "ADGEN" if SHARED.is_dir() else "project pages"}
    return record


def main(words: Sequence[str] | None = None) -> Record:
    """Measure, or do the one task of a child process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", nargs=3, metavar=("SIDE", "TASK", "PAIRS"), help=argparse.SUPPRESS)
    parser.add_argument("--num-pairs", type=int, default=NUM_PAIRS)
    options = parse(parser, words)
    if options.measure:
        side, task, path = options.measure
        figures = measure(side, task, Path(path))
        print(json.dumps(figures))
        return figures
    return finish(run_scores(options), "scores", options)


if __name__ == "__main__":
    main()
