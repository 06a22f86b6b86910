"""Proof of an export: loaded in a fresh process, its logits and greedy ids are those of base + adapter."""

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
"""Number of ids generated greedily after each prompt."""
QUESTIONS = ("你好，请介绍一下你自己。", "How do I get to the library? 1 + 1 = 2")
"""Prompts of the proof: chats of one message each, in the model's chat format."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The logits and ids that a fresh process computed with an export."""

    logits: list[Tensor]
    """Logits of each prompt, (T, V)."""
    greedy: list[list[int]]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected logits of prompts with their greedy ids, (T + new, V) each."""

    rounded: list[Tensor]
    """Computed with the weights as they are written."""
    exact: list[Tensor]
    """Computed with base + adapter as loaded, without merging."""
    base: list[Tensor] | None = None
    """Computed with the base alone; None if nothing is merged."""
    merged: list[Tensor] | None = None
    """Computed with the merged weights before quantisation; None if nothing is quantised."""
    dtype: torch.dtype = torch.float32
    """The written floating type with the coarsest rounding."""


def ask_fresh_process(
    folder: Path,
    prompts: Sequence[list[int]],
    *,
    opener: str,
    base: Path | None = None,
    template: str | None = None,
    messages: list[dict[str, str]] | None = None,
) -> Answers:
    """Load an export in a process of its own, and return its answers.

    Raises `OutputError` with the last line of its output if that fails.
    """
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
            cwd=desk,  # an empty folder, so that no file of the present one is imported
            # on the CPU as here, so that only the order of sums differs
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
            last_line = lines[-1] if lines else "it said nothing"
            raise refused(f"a fresh process cannot open it: {last_line}")
        facts = json.loads(path.with_suffix(".answer.json").read_text(encoding="utf-8"))
        logits = read_pickle(path.with_suffix(".pt"), mmap=False)
    return Answers(logits, facts.pop("greedy"), facts)


def compare_answers(answers: Answers, expected: Expected) -> dict[str, Any]:
    """Return the figures of an export. Raises `OutputError` if logits or greedy ids are not as expected."""
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
        # each of the two compared logits may be off by the tolerance
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
    """Return figures of the merged weights against base + adapter unmerged. Raises `OutputError` if too far.

    A quantised export is compared as it was before quantisation, whose loss cannot be bounded in advance.
    """
    if expected.base is None:
        return {}
    ours = expected.merged or answers.logits
    measured = compare_logits(ours, expected.exact, ROUNDED[expected.dtype], largest)
    kind = str(expected.dtype).removeprefix("torch.")
    if not measured.is_allowed:
        raise refused(
            f"its logits are off by {measured.off:.3g} from those of base + adapter, allowed in {kind} are "
            f"{measured.allowed:.3g}"
        )
    # The bound alone would also accept the base itself where little was learned. So whenever the update is
    # larger than rounding, the export must be nearer to the trained model than to the base.
    learned = distance(expected.exact, expected.base)
    is_notable = learned > NOTABLE[expected.dtype] * largest
    if is_notable and not _length(ours, expected.exact) < _length(ours, expected.base):
        raise OutputError(
            f"export: in {kind} the merged weights are nearer to the base than to base + adapter",
            hint="rounding took what was learned: dtype=fp32; or the merge is wrong if that fails too",
        )
    return {
        "merged_difference_to_trained": measured.off,
        "merged_tolerance": measured.allowed,
        "trained_difference_to_base": learned,
        "nearer_to_trained_than_to_base": True if is_notable else None,
    }


def agreement(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """Return the largest |difference| of two models' logits, and the share of equal top tokens."""
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(ours, theirs, strict=True)])
    return distance(ours, theirs), float(same.float().mean())


def _length(shorter: Sequence[Tensor], longer: Sequence[Tensor]) -> float:
    """Return the Euclidean distance of logits; rows of `longer` may go on."""
    pairs = zip(shorter, longer, strict=True)
    return sqrt(sum(float((a - b[: len(a)]).double().square().sum()) for a, b in pairs))


def _continues(greedy: Sequence[list[int]], logits: Sequence[Tensor], *, slack: float) -> bool:
    """Return True if each id has the largest logit at its position, or one smaller by at most `slack`."""
    for ids, whole in zip(greedy, logits, strict=True):
        rows = whole[-len(ids) - 1 : -1]  # the logits at a position predict the id after it
        taken = rows.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        if not bool((rows.amax(-1) - taken <= slack).all()):
            return False
    return True
