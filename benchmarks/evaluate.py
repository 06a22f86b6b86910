"""A whole evaluation: rows of ADGEN a second, from prompts to scores, in turns, at the 170 M shape.

Ours answers with the engine and scores with glmtune; the peer answers with `generate` in batches padded on
the left and scores with jieba, rouge-chinese and nltk as the official script calls them. Each answer is as
long as its reference. Random weights write no Chinese, so the texts that are scored are adverts, each beside
another row's reference; scoring is a process of its own, imports and dictionary included, as after a start.

    python -m benchmarks.evaluate
    python -m benchmarks.evaluate --rows 1070 --rounds 1                              # all of dev.json
    python -m benchmarks.evaluate --shape test --rows 3 --longest 4 --rounds 1 --dry  # shows that it runs
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import measure, models
from benchmarks.measure import Record
from benchmarks.models import Adgen, Answer, generate, ours
from benchmarks.scores import measure_apart, write_pairs
from glmtune.generate import choose_compute

BATCH = 16
VARIANT = "thudm"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Evaluating:
    """A side that answers all rows, decodes the answers and scores; its figure is rows a second."""

    def __init__(self, answer: Answer, adgen: Adgen, scorer: str, pairs: Path) -> None:
        """`scorer`: official or ours."""
        self.answer = answer
        self.adgen = adgen
        self.scorer = scorer
        self.pairs = pairs
        self.scores: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {"answering": [], "scoring": []}

    def warm(self) -> None:
        """Answer a little, and load the scorer's packages."""
        self.answer(self.adgen.asked.first(BATCH, longest=2))
        measure_apart(self.scorer, "load", self.pairs)

    def run(self) -> float:
        """Rows a second."""
        answering = measure.seconds_of(self._write)
        found = measure_apart(self.scorer, VARIANT, self.pairs)
        self.scores = found["scores"]
        self.seconds["answering"].append(answering)
        self.seconds["scoring"].append(found["wall_s"])
        return len(self.adgen.references) / (answering + found["wall_s"])

    def _write(self) -> list[str]:
        answers = self.answer(self.adgen.asked)
        return [self.adgen.tokenizer.decode(ids) for ids in answers]


def run(options: argparse.Namespace) -> Record:
    """Three sides: the peer, ours in the same precision, ours in W8A8."""
    record = measure.begin(f"evaluate {options.rows}", "rows/s", options)
    adgen = models.read_adgen(options.rows, options.work, longest=options.longest)
    beside = [*adgen.references[1:], adgen.references[0]]
    pairs = write_pairs(list(zip(beside, adgen.references, strict=True)), options.work)
    model = models.build_model(options.shape, DTYPES[options.dtype])
    fast = choose_compute(model, "fast")
    sides = {
        f"generate {options.dtype}, batch {BATCH}; packages": (generate(model, BATCH), "official"),
        f"ours {options.dtype}": (ours(model), "ours"),
        "ours W8A8": (ours(fast), "ours"),
    }
    timed = {name: Evaluating(answer, adgen, scorer, pairs) for name, (answer, scorer) in sides.items()}
    record["sides"] = measure.take_turns(timed, options.rounds)
    record["parts"] = {name: _parts(side) for name, side in timed.items()}
    record["checks"] = _check_scores(list(timed.values()))
    return record


def _parts(side: Evaluating) -> dict[str, float]:
    return {f"{part} s": round(median(seconds), 2) for part, seconds in side.seconds.items()}


def _check_scores(sides: Sequence[Evaluating]) -> dict[str, Any]:
    peer, *own = sides
    assert all(side.scores == {**peer.scores, "num_empty": 0} for side in own)
    return {"scores equal": True}


def main(words: Sequence[str] | None = None) -> Record:
    """Run it; return its record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the exact sides")
    parser.add_argument("--shape", choices=models.SHAPES, default="170m")
    parser.add_argument("--longest", type=int, help="cut the answers")
    options = measure.parse(parser, words)
    return measure.finish(run(options), "evaluate", options)


if __name__ == "__main__":
    main()
