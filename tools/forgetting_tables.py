"""Writes the tables and pictures of docs/defaults.md, from benchmarks/results/forgetting/runs.jsonl.

python -m tools.forgetting_tables
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import mean
from typing import Any

from benchmarks.forgetting_bases import OTHER, TWENTY_MILLION
from benchmarks.forgetting_runs import WAYS
from benchmarks.forgetting_verdict import MATTERS, Judged, auroc, curve, judged, left_out, lowest, rates
from benchmarks.measure import RESULTS
from tools.memory_tables import read
from tools.pages import DOCS, table, with_table, write_pages

from glmtune.recipe.retain import Retain
from glmtune.reports import canvas
from glmtune.run_files import read_json_lines

Facts = dict[str, Any]
MARK = "<!-- {}: made by `python -m tools.forgetting_tables` -->"
PAGES = {"defaults.md": "en", "defaults.zh.md": "zh"}
PICTURES = {"en": "verdict.png", "zh": "verdict.zh.png"}
BASES = ("glm-tiny", OTHER, TWENTY_MILLION)
COLOURS = ("#1F77B4", "#2CA02C", "#D62728")
WORDS = {
    "en": {
        "to": "to", "base": "base", "runs": "runs", "lost": "loss up by 5 % or more", "auroc": "AUROC",
        "false": "false, %", "true": "found, %", "by hits": "score down by 5 % or more",
        "auroc of hits": "AUROC", "left out": "the same, threshold of the other bases", "all": "all",
        "threshold": "lowest threshold",
        "task": "task", "way": "protection", "kl": "KL per token", "part": "of that without",
        "loss": "task loss", "rouge": "task ROUGE-L", "rise": "general loss, % up",
        "steps": "steps", "time": "time", "none": "none", "seeds": "seeds",
        "adverts": "adverts", "identity": "identity, 12 rows", "facts": "facts",
        "rate": "`train.lr`", "epochs": "epochs", "targets": "targets", "replay": "replay",
        "trained": "training rows",
        "rows": "rows", "learned": "learned tokens", "minutes": "minutes",
        "held out": "loss of held-out rows (step)",
        "x": "KL on general prompts, nats a token", "y": "rise of the general loss, %",
        "false rate": "runs without that rise, %", "true rate": "runs with that rise found, %",
    },
    "zh": {
        "to": "到", "base": "基座", "runs": "运行数", "lost": "损失上升 5 % 及以上的", "auroc": "AUROC",
        "false": "误判，%", "true": "找出，%",
        "by hits": "分数下降 5 % 及以上的", "auroc of hits": "AUROC", "left out": "同左，阈值取自其他基座",
        "all": "全部", "threshold": "最低的阈值",
        "task": "任务", "way": "保护办法", "kl": "每 token 的 KL", "part": "相当于无保护的",
        "loss": "任务损失", "rouge": "任务 ROUGE-L", "rise": "通用损失，上升 %",
        "steps": "步数", "time": "用时",
        "none": "无", "seeds": "种子数",
        "adverts": "广告", "identity": "身份，12 行", "facts": "事实",
        "rate": "`train.lr`", "epochs": "轮数", "targets": "目标", "replay": "重放", "trained": "训练行数",
        "rows": "行数", "learned": "学习的 token", "minutes": "分钟", "held out": "留出行的损失（步）",
        "x": "通用提示上的 KL，nat / token", "y": "通用损失的上升，%",
        "false rate": "没有这样上升的运行，%", "true rate": "有这样上升且被找出的运行，%",
    },
}  # fmt: skip


def lines(kind: str) -> list[Facts]:
    """The runs of a kind."""
    return [line for line in read_json_lines(RESULTS / "forgetting" / "runs.jsonl") if line["kind"] == kind]


def all_judged() -> list[Judged]:
    """All runs, whatever they were made for."""
    return judged(read_json_lines(RESULTS / "forgetting" / "runs.jsonl"))


def spread(values: Iterable[float], digits: int, language: str) -> str:
    """Mean, and least to most where there are several."""
    found = list(values)
    text = f"{mean(found):.{digits}f}"
    low, high = (f"{find(found):.{digits}f}" for find in (min, max))
    return text if len(found) == 1 else f"{text} ({low} {WORDS[language]['to']} {high})"


def verdict(language: str) -> str:
    """Runs by base, and how well the divergence tells those with a drop."""
    words, runs = WORDS[language], all_judged()
    heads = ("base", "runs", "lost", "auroc", "false", "true", "left out", "by hits", "auroc of hits")
    rows = [[words[key] for key in heads]]
    others = left_out(runs)
    for base in (*(base for base in BASES if any(run.base == base for run in runs)), None):
        part = [run for run in runs if base in (run.base, None)]
        lost, area = _lost(part)
        false, true = (f"{100 * rate:.1f}" for rate in rates(part, lowest(runs)))
        apart = " / ".join(f"{100 * rate:.1f}" for rate in others.get(base or "", ()))
        by_hits = _lost([run.by_hits for run in part])
        rows.append([base or words["all"], str(len(part)), lost, area, false, true, apart, *by_hits])
    bounds = [(words["threshold"], lowest(runs))]
    bounds += [(f"`retain.{name}`", getattr(Retain(), name)) for name in ("drifted", "forgot")]
    shares = [[100 * rate for rate in rates(runs, bound)] for _, bound in bounds]
    judgements = [
        [name, f"{bound:.3g}", *(f"{share:.1f}" for share in found)]
        for (name, bound), found in zip(bounds, shares, strict=True)
    ]
    return f"{table(rows)}\n\n{table([['', words['x'], words['false'], words['true']], *judgements])}"


def _lost(runs: Sequence[Judged]) -> tuple[str, str]:
    """The number of runs that lost, and the area under the curve where there are both."""
    lost = sum(run.has_lost for run in runs)
    return str(lost), f"{auroc(runs):.3f}" if 0 < lost < len(runs) else ""


def ways(language: str, kind: str = "ways", more: int = 0) -> str:
    """Protections by task: what was forgotten, in so many digits more, what was learned, steps and time."""
    words, runs = WORDS[language], lines(kind)
    rows = [
        [
            words[key]
            for key in ("task", "way", "seeds", "kl", "part", "loss", "rouge", "rise", "steps", "time")
        ]
    ]
    for task in dict.fromkeys(run["task"] for run in runs):
        without = _of(runs, task, "none")
        for way in WAYS:
            found = _of(runs, task, way)
            if not found:
                continue
            kls = [run["kl"] for run in found]
            quotient = mean(kls) / mean(run["kl"] for run in without)
            took, took_without = (mean(run["steps_s"] for run in part) for part in (found, without))
            rows.append(
                [
                    words[task], words.get(way, way), str(len(found)),
                    spread(kls, 3 + more, language), f"{quotient:.2f}",
                    spread((run["task_loss"] for run in found), 2, language),
                    spread((run["task_rouge_l"] for run in found), 1, language),
                    spread((100 * (_rise(run)) for run in found), more, language),
                    f"{mean(run['steps'] for run in found):.0f}", f"{took / took_without:.2f}",
                ]
            )  # fmt: skip
    return table(rows)


def dozen(language: str) -> str:
    """A dozen identity rows for hundreds of epochs at P-Tuning's published rate."""
    words, runs = WORDS[language], lines("identity")
    heads = [words[key] for key in ("seeds", "kl", "loss", "rouge", "rise", "steps")]
    figures = [
        spread((run["kl"] for run in runs), 2, language),
        spread((run["task_loss"] for run in runs), 2, language),
        spread((run["task_rouge_l"] for run in runs), 1, language),
        spread((100 * _rise(run) for run in runs), 0, language),
    ]
    return table([heads, [str(len(runs)), *figures, str(runs[0]["steps"])]])


def front(language: str) -> str:
    """Settings by successive halving on the 20 M model: the figures of each, on few rows and on all."""
    words, runs = WORDS[language], lines("front")
    heads = ("trained", "rate", "targets", "replay", "seeds", "kl", "rise", "loss", "rouge", "time")
    rows = [[words[key] for key in heads]]
    by_setting: dict[tuple[int, float, str, float], list[Facts]] = {}
    for run in runs:
        lr, targets, ratio = run["train"]["lr"], run["method"]["target_modules"], run["retain"]["ratio"]
        by_setting.setdefault((run["max_rows"], lr, targets, ratio), []).append(run)
    for (number, lr, targets, ratio), found in sorted(by_setting.items()):
        without = by_setting.get((number, lr, targets, 0.0), found)
        took, took_without = (mean(run["steps_s"] for run in part) for part in (found, without))
        rows.append(
            [
                f"{number:,}", f"{lr:g}", f"`{targets}`", f"{ratio:g}", str(len(found)),
                spread((run["kl"] for run in found), 4, language),
                spread((100 * _rise(run) for run in found), 2, language),
                spread((run["task_loss"] for run in found), 2, language),
                spread((run["task_rouge_l"] for run in found), 1, language),
                f"{took / took_without:.2f}",
            ]
        )  # fmt: skip
    return table(rows)


def grid(language: str) -> str:
    """Rate, epochs and targets on glm-tiny, with replay and without: ranks and seeds together."""
    words, runs = WORDS[language], lines("grid")
    heads = ("rate", "epochs", "targets", "replay", "runs", "kl", "part", "rise", "loss")
    rows = [[words[key] for key in heads]]
    by_setting: dict[tuple[float, int, str, float], list[Facts]] = {}
    for run in runs:
        targets = "all_linear" if "target_modules" in run["method"] else "attention"
        key = (run["train"]["lr"], run["train"]["epochs"], targets, run["retain"]["ratio"])
        by_setting.setdefault(key, []).append(run)
    for (lr, epochs, targets, ratio), found in sorted(by_setting.items()):
        kls, without = ([run["kl"] for run in by_setting[lr, epochs, targets, each]] for each in (ratio, 0.0))
        rows.append(
            [
                f"{lr:g}", str(epochs), f"`{targets}`", f"{ratio:g}", str(len(found)),
                spread(kls, 3, language), f"{mean(kls) / mean(without):.2f}",
                spread((100 * _rise(run) for run in found), 1, language),
                spread((run["task_loss"] for run in found), 2, language),
            ]
        )  # fmt: skip
    return table(rows)


def _rise(run: Facts) -> float:
    before, after = run["general_loss"]
    return float(after / before - 1)


def _of(runs: Sequence[Facts], task: str, way: str) -> list[Facts]:
    return [run for run in runs if run["task"] == task and run["name"].startswith(f"{task} {way} seed=")]


def model(language: str) -> str:
    """How far the 20 M model has come: steps, tokens, held-out loss."""
    facts, words = read("twenty_million.json"), WORDS[language]
    done, planned = facts["steps"]
    losses = facts["eval_loss"].items()
    return table(
        [
            [words[key] for key in ("rows", "steps", "learned", "minutes", "held out")],
            [
                f"{facts['rows']['general']:,}", f"{done} / {planned}", f"{facts['learned_tokens']:,}",
                f"{facts['minutes']:.0f}", ", ".join(f"{loss:.2f} ({step})" for step, loss in losses),
            ],
        ]
    )  # fmt: skip


TABLES: dict[str, Callable[[str], str]] = {
    "model": model,
    "verdict": verdict,
    "default": partial(ways, kind="default", more=3),
    "ways": ways,
    "dozen": dozen,
    "front": front,
    "grid": grid,
}


def fill(text: str, page: str) -> str:
    """A page's text with all its tables."""
    for name, make in TABLES.items():
        text = with_table(text, MARK.format(name), make(PAGES[page]))
    return text


def draw(language: str) -> None:
    """Draw the rise of the loss against the divergence, and the curve of both rates over all thresholds."""
    words, runs = WORDS[language], all_judged()
    figure = canvas.new_figure(width=10.0, height=4.4)
    drops, curves = figure.subplots(1, 2, width_ratios=(3, 2))
    for base, colour in zip(BASES, COLOURS, strict=True):
        part = [run for run in runs if run.base == base]
        shown = drops.scatter(
            [r.kl for r in part], [100 * r.rise for r in part], s=18, color=colour, alpha=0.7
        )
        shown.set_label(base)
    drops.set_xscale("log")
    drops.set_yscale("symlog", linthresh=1)
    drops.set_ylim(-0.5, 200 * max(run.rise for run in runs))
    drops.axhline(100 * MATTERS, color="0.4", linewidth=0.8)
    drops.axvline(lowest(runs), color="0.4", linewidth=0.8, linestyle="--")
    points = curve(runs)
    curves.plot([100 * false for false, _ in points], [100 * true for _, true in points], color="0.2")
    for axes, x, y in ((drops, "x", "y"), (curves, "false rate", "true rate")):
        canvas.style(axes)
        canvas.write(axes.set_xlabel(" "), words[x])
        canvas.write(axes.set_ylabel(" "), words[y])
    drops.legend(frameon=False, fontsize=canvas.SMALL_POINTS)
    canvas.save(figure, DOCS / "pictures" / PICTURES[language])


def main() -> None:
    """Write tables and pictures."""
    write_pages(PAGES, fill)
    for language in PICTURES:
        draw(language)


if __name__ == "__main__":
    main()
