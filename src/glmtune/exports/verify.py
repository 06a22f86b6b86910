"""Proof of an export: opened in a fresh process, it answers as base + adapter do."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.adapters.logit_tolerance import NOTABLE, ROUNDED, SAME, compare_logits, distance, largest_logit
from glmtune.errors import OutputError
from glmtune.exports import fresh
from glmtune.exports.refusal import refused
from glmtune.models.pickles import read_pickle

WHY = (
    "the same weights computed in fp32 in another process: only the order of sums differs; what rounding the "
    "merged weights to the export's type changes is given apart, against base + adapter unrounded"
)
NEW_TOKENS = 8
"""So many ids are written greedily after each prompt."""
QUESTIONS = ("你好，请介绍一下你自己。", "How do I get to the library? 1 + 1 = 2")
"""The probe: short chats of one question each, in the model's own format."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a fresh process said of an export."""

    logits: list[Tensor]
    """Of each prompt, (T, V)."""
    greedy: list[list[int]]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Expected:
    """Logits of prompt and greedy ids, (T + new, V) each."""

    rounded: list[Tensor]
    """Computed with the weights as they are written."""
    exact: list[Tensor]
    """Of base + adapter as they are opened, nothing merged."""
    base: list[Tensor] | None = None
    """Of the base alone; None where nothing is merged."""
    merged: list[Tensor] | None = None
    """Computed with the weights as they were before they were quantised."""
    dtype: torch.dtype = torch.float32
    """The roughest type that weights are written in."""


def ask_fresh_process(
    folder: Path,
    prompts: Sequence[list[int]],
    *,
    opener: str,
    base: Path | None = None,
    template: str | None = None,
    messages: list[dict[str, str]] | None = None,
) -> Answers:
    """Open an export in a process of its own. Raises `OutputError` with its last words if that fails."""
    job = {
        "folder": str(folder.resolve()),
        "base": str(base.resolve()) if base else None,
        "opener": opener,
        "template": template,
        "prompts": list(prompts),
        "new_tokens": NEW_TOKENS,
        "messages": messages,
    }
    with tempfile.TemporaryDirectory() as desk:
        path = Path(desk) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, fresh.__file__, str(path)],
            cwd=desk,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise refused(f"a fresh process cannot open it: {_last_words(done.stderr)}")
        facts = json.loads(path.with_suffix(".answer.json").read_text(encoding="utf-8"))
        logits = read_pickle(path.with_suffix(".pt"), mmap=False)
    return Answers(logits, facts.pop("greedy"), facts)


def compare_answers(answers: Answers, expected: Expected) -> dict[str, Any]:
    """The figures of an export. Raises `OutputError` if it does not answer as it should."""
    largest = largest_logit(expected.exact)
    written, trained = (
        compare_logits(answers.logits, rows, SAME[torch.float32], largest)
        for rows in (expected.rounded, expected.exact)
    )
    tolerance = written.allowed
    figures = {
        "max_difference": written.off,
        "tolerance": tolerance,
        "why": WHY,
        "max_difference_to_trained": trained.off,
        "max_logit": largest,
        "greedy_ids": answers.greedy,
        "greedy_equal": _continues(answers.greedy, expected.rounded, slack=2 * tolerance),
        "is_exact": trained.is_allowed,
        "greedy_equal_to_trained": _continues(answers.greedy, expected.exact, slack=0),
        **answers.facts,
    }
    if not written.is_allowed:
        raise refused(
            f"opened in a fresh process its logits are off by {written.off:.3g}, allowed are {tolerance:.3g}"
        )
    if not figures["greedy_equal"]:
        raise refused("opened in a fresh process it writes other greedy ids than it should")
    if figures["is_exact"] and not _continues(answers.greedy, expected.exact, slack=2 * tolerance):
        raise refused("opened in a fresh process it writes other greedy ids than base + adapter")
    return figures | _compare_to_trained(answers, expected, largest)


def _compare_to_trained(answers: Answers, expected: Expected, largest: float) -> dict[str, Any]:
    """That the right weights were written: by base + adapter, which nothing was merged for.

    What is quantised is compared as it was before: how much that loses nobody can say beforehand.
    """
    if expected.base is None:
        return {}
    ours = expected.merged or answers.logits
    found = compare_logits(ours, expected.exact, ROUNDED[expected.dtype], largest)
    kind = str(expected.dtype).removeprefix("torch.")
    if not found.is_allowed:
        raise refused(
            f"its logits are off by {found.off:.3g} from those of base + adapter, allowed in {kind} are "
            f"{found.allowed:.3g}"
        )
    learned = distance(expected.exact, expected.base)
    is_notable = learned > NOTABLE[expected.dtype] * largest
    if is_notable and not _length(ours, expected.exact) < _length(ours, expected.base):
        raise OutputError(
            f"export: in {kind} the merged weights are nearer to the base than to base + adapter",
            hint="rounding took what was learned: dtype=fp32; or the merge is wrong if that fails too",
        )
    return {
        "merged_difference_to_trained": found.off,
        "merged_tolerance": found.allowed,
        "trained_difference_to_base": learned,
        "nearer_to_trained_than_to_base": True if is_notable else None,
    }


def agreement(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """Largest |difference| of logits of the same prompts, and the share of places with the same top token."""
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(ours, theirs, strict=True)])
    return distance(ours, theirs), float(same.float().mean())


def _length(shorter: Sequence[Tensor], longer: Sequence[Tensor]) -> float:
    pairs = zip(shorter, longer, strict=True)
    return sqrt(sum(float((a - b[: len(a)]).double().square().sum()) for a, b in pairs))


def _continues(greedy: Sequence[list[int]], logits: Sequence[Tensor], *, slack: float) -> bool:
    """Whether each id is the most likely one where it stands, or as likely as that one but for `slack`."""
    for ids, whole in zip(greedy, logits, strict=True):
        rows = whole[-len(ids) - 1 : -1]
        taken = rows.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        if not bool((rows.amax(-1) - taken <= slack).all()):
            return False
    return True


def _last_words(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
