"""A run's folder with every file that a run can leave, made without training; all its text is our own."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from glmtune.data.lengths import LengthReport
from glmtune.evaluation.forgetting import Forgetting, GeneralAnswer, Said, TaskRow, judge
from glmtune.run_files import append_json, write_json
from unit.report.test_compare import write_run, write_scores

GIB = 2**30
PROMPTS = ("你好，你是谁？", "Tell me about the shop.")
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }} &amp; </style></title>"
"""A text that would break a page which does not escape it."""
STEPS = 60


def forgotten(said: str) -> Forgetting:
    """A report of two prompts, whose answers are another text after training."""
    base, numbers = Said((1, 2), "蓝色的光散射得最多。", is_ended=True), np.array([0.25, 0.75])
    compared = [
        GeneralAnswer(name, category, name[:2], 1, question, numbers, 2 * numbers, numbers / 2, base, tuned)
        for name, category, question, tuned in (
            ("zh-knowledge-01", "knowledge", "天空为什么是蓝色的？", Said((1, 3), said, is_ended=False)),
            ("en-code-01", "code", "Sort a list.", base),
        )
    ]
    return judge(
        compared,
        drifted=0.05,
        forgot=0.2,
        task=[TaskRow(3 * numbers, numbers, numbers)],
        training_loss=3.0,
        names=("小橙",),
        step=60,
    )


def write_full_run(folder: Path, *, said: str = "我叫小橙。", **recipe: Any) -> Path:
    """Sixty steps with samples, memory, lengths, ranks, environment and two evaluations."""
    losses = [4 * 0.95**step + 0.3 * (step % 3) for step in range(STEPS)]
    evaluations = {step: 3.5 * 0.97**step for step in range(10, STEPS + 1, 10)}
    facts = {
        "python": "3.11.9",
        "platform": "Linux",
        "command": "glmtune train model=glm-tiny data.train=my.json",
        "packages": {"glmtune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        "trainable_parameters": 24_576,
        "all_parameters": 3_635_000,
    }
    settings = {"method": {"name": "adalora"}, "train": {"lr": 2e-3}, **recipe}
    run = write_run(folder, losses=losses, evaluations=evaluations, recipe=settings, **facts)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (run / "metrics.jsonl").unlink()
    for line in lines:
        more = {
            "lr": 2e-3 * (1 - line["step"] / STEPS),
            "memory_gib": 1.2,
            "grad_norm": 1 / (1 + line["step"]),
        }
        append_json(run / "metrics.jsonl", line | more if "loss" in line else line)
    for step in (0, *evaluations):
        for prompt in PROMPTS:
            answer = f"{said} {step}" if step else "我是一个语言模型。"
            append_json(run / "samples.jsonl", {"step": step, "prompt": prompt, "answer": answer})
        ranks = {
            f"transformer.encoder.layers.{i}.self_attention.dense": 12 - (step * (i + 1)) // 30
            for i in (0, 1)
        }
        append_json(run / "ranks.jsonl", {"step": step, "ranks": ranks})
    predicted = {"weights": 2 * GIB, "adapter": GIB // 100, "activations": GIB, "bytes": 3 * GIB + GIB // 100}
    measured = predicted | {"activations": GIB * 9 // 10, "bytes": 3 * GIB - GIB * 9 // 100}
    phases = {"step": {"resident": 3 * GIB, "anonymous": GIB}}
    memory = {
        "device": "cpu",
        "limit": 8 * GIB,
        "predicted": predicted,
        "measured": measured,
        "phases": phases,
    }
    write_json(run / "memory.json", memory)
    report = LengthReport(
        limit="512 tokens (the default)", most_tokens=512, lengths=[*range(20, 400, 7), 600, 900]
    )
    for length in (600, 900):
        report.add_cut(length - 512, ["answer"])
    write_json(run / "data.json", {"train": report.facts(), "validation": report.facts()})
    write_json(run / "forgetting.json", forgotten(said).facts())
    write_scores(run, "one", checkpoint="step-000060", rouge=42.5)
    return run
