"""Scoring answers: ours, and jieba, rouge-chinese and nltk as the two official scripts call them.

Each measurement is a process of its own, so that nothing is kept from one to the next; ours and theirs take
turns. The texts are 1,070 pairs of ADGEN adverts from ../shared (or $GLMTUNE_SHARED), where they are there:
the references of its dev split, and other adverts as answers. Else they are stretches, as long, of this
project's own Chinese pages, which repeat themselves: that helps ours. Asserts that both give the same values.

    .venv/bin/python benchmarks/scores.py
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("GLMTUNE_SHARED", ROOT.parent / "shared")) / "data/AdvertiseGen"
NUM_PAIRS = 1070
SIDES = ("official", "ours")
TASKS = ("load", "cut", "thudm", "chatglm3")
"""Packages and dictionary; these and words of all texts; these and all scores of one variant."""

Pairs = list[tuple[str, str]]


def read_pairs() -> Pairs:
    """Answers and references."""
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


def measure(side: str, task: str) -> dict[str, Any]:
    """Do one task in this process; CPU and wall seconds, imports and dictionary included, and the scores."""
    pairs = read_pairs()
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


def main(*, rounds: int) -> dict[str, Any]:
    """Run every task of both sides in turn; return medians, spreads and ratios."""
    jobs = [(side, task) for task in TASKS for side in SIDES] + [("ours", "both")]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {job: [] for job in jobs}
    for job in jobs * rounds:
        command = [sys.executable, __file__, "--measure", *job]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs[job].append(json.loads(done.stdout.splitlines()[-1]))
    for variant in ("thudm", "chatglm3"):
        official, ours = (runs[side, variant][0]["scores"] for side in SIDES)
        assert ours == {**official, "num_empty": 0}, variant
        assert runs["ours", "both"][0]["scores"][variant] == ours, variant
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "text": "ADGEN" if SHARED.is_dir() else "project pages",
        "num_pairs": NUM_PAIRS,
        "rounds": rounds,
        "values_equal": True,
        "tasks": {f"{task}, {side}": _summary(runs[side, task]) for side, task in jobs},
        "times_faster": _ratios(runs),
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for clock in ("cpu_s", "wall_s"):
        seconds = [run[clock] for run in runs]
        found |= {clock: round(median(seconds), 3), f"{clock}_least": round(min(seconds), 3)}
        found[f"{clock}_most"] = round(max(seconds), 3)
    return found


def _ratios(runs: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, float]:
    """CPU seconds of the packages over ours: of each task, of what it adds to another, and of both variants.

    Ours reads the dictionary as it cuts, so words without `load` are no fair comparison: for ours.
    """
    seconds = {job: median(run["cpu_s"] for run in found) for job, found in runs.items()}
    official, ours = ({task: seconds[side, task] for task in TASKS} for side in SIDES)
    ratios = {task: official[task] / ours[task] for task in TASKS}
    for task in ("thudm", "chatglm3"):
        for before in ("load", "cut"):
            added = [found[task] - found[before] for found in (official, ours)]
            ratios[f"{task} without {before}"] = added[0] / added[1]
    both = official["thudm"] + official["chatglm3"] - official["load"]
    ratios["both variants"] = both / seconds["ours", "both"]
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "TASK"), help="one task, in this process")
    options = parser.parse_args()
    found = measure(*options.measure) if options.measure else main(rounds=options.rounds)
    print(json.dumps(found, indent=None if options.measure else 2))
