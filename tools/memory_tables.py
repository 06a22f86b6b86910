"""Writes the tables of memory in the docs anew, from benchmarks/results/memory.json and cards.json.

python -m tools.memory_tables
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.measure import RESULTS
from benchmarks.memory import MIB, compare
from benchmarks.memory_cases import GLM_TINY, TRAINED, Case
from tools.pages import table, with_table, write_pages

from glmtune.workflows.forecast import CONTEXT

Facts = Mapping[str, Any]
MARK = "<!-- {}: made by `python -m tools.memory_tables` -->"
QUANTS = ("half", "int8", "int4")
CARDS = {6: "", 8: "", 11: "2080 Ti, 1080 Ti", 16: "P100, T4", 24: "3090, 4090"}
"""GB of a card, and well-known ones of that size."""
LAPTOPS = (8, 16, 32)
WORDS = {
    "en": {
        "case": "case: rows x tokens of a micro-batch; MiB", "mapped": "mapped weights",
        "method": "method; MiB", "plan": "{}: plan", "run": "run", "quotient": "plan / run",
        "predicted": "forecast", "measured": "measured",
        "ratio": "forecast / measured", "you have": "you have", "half": "fp16", "card": "a card of {} GB{}",
        "no card": "no card, {} GB of memory", "published": "published", "forecast": "`glmtune plan`",
    },
    "zh": {
        "case": "情形：微批的行数 x token 数；MiB", "mapped": "映射的权重", "method": "方法；MiB",
        "plan": "{}：计划", "run": "运行", "quotient": "计划 / 运行",
        "predicted": "预估", "measured": "实测",
        "ratio": "预估 / 实测", "you have": "你有", "half": "fp16", "card": "{} GB 的显卡{}",
        "no card": "没有显卡，{} GB 内存", "published": "公布的数字", "forecast": "`glmtune plan`",
    },
}  # fmt: skip
PUBLISHED = (
    ("ChatGLM-6B half ptuning 1 x 64 + 64", "evaluation", "13 GB", "FP16, answers", "FP16，回答"),
    ("ChatGLM-6B int8 ptuning 1 x 64 + 64", "evaluation", "8 GB; 10 GB", "INT8, answers", "INT8，回答"),
    ("ChatGLM-6B int4 ptuning 1 x 64 + 64", "evaluation", "6 GB", "INT4, answers", "INT4，回答"),
    ("ChatGLM-6B half ptuning 1 x 64 + 64", "training", "13 GB; 14 GB", "FP16, P-Tuning", "FP16，P-Tuning"),
    ("ChatGLM-6B int8 ptuning 1 x 64 + 64", "training", "9 GB", "INT8, P-Tuning", "INT8，P-Tuning"),
    ("ChatGLM-6B int4 ptuning 1 x 64 + 64", "training", "6.7 GB; 7 GB", "INT4, P-Tuning", "INT4，P-Tuning"),
    (
        "ChatGLM3-6B half lora 4 x 256 + 512", "training", "14,082 MiB",
        "ChatGLM3-6B, LoRA, 4 rows of 256 + 512", "ChatGLM3-6B，LoRA，4 行 256 + 512",
    ),
    (
        "ChatGLM3-6B half ptuning 4 x 256 + 512", "training", "18,426 MiB",
        "ChatGLM3-6B, P-Tuning, the same rows", "ChatGLM3-6B，P-Tuning，同样的行",
    ),
)  # fmt: skip
"""Case, phase, the published figure, and what it is of."""


def read(name: str) -> Any:
    """The content of a file of results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def measured(language: str) -> str:
    """Predicted and measured of each case, above the interpreter."""
    words, keys = WORDS[language], ("mapped", "predicted", "measured")
    rows = [[words[key] for key in ("case", *keys, "ratio")]]
    for name, facts in read("memory.json")["cases"].items():
        found = compare(name, facts)
        rows.append([name, *(f"{found[key]:,.0f}" for key in keys), f"{found['ratio']:.2f}"])
    return table(rows)


def each_way(language: str) -> str:
    """The plan of every method and its run, on glm-tiny and on a model of 170 M parameters."""
    words, cases = WORDS[language], read("memory.json")["cases"]
    models = {GLM_TINY: GLM_TINY, "chatglm3": "170 M"}
    heads = [(words["plan"].format(shown), words["run"], words["quotient"]) for shown in models.values()]
    rows = [[words["method"], *(head for each in heads for head in each)]]
    for method, quant in TRAINED:
        cells = [f"{method} {quant or ''}".strip()]
        for kind in models:
            name = Case(method, quant, 512, False, kind).name
            if name not in cases:  # not run yet
                cells += ["–"] * 3
                continue
            found = compare(name, cases[name])
            cells += [f"{found['predicted']:,}", f"{found['measured']:,}", f"{found['ratio']:.2f}"]
        rows.append(cells)
    return table(rows)


def longest(language: str) -> str:
    """The longest row that LoRA fits, of those foreseen, by machine, model and bits."""
    words, cases = WORDS[language], read("cards.json")
    models = ("ChatGLM3-6B", "GLM-4-9B")
    machines = {
        f"{size} GB card": words["card"].format(size, f" ({known})" if known else "")
        for size, known in CARDS.items()
    } | {f"{size} GB, no card": words["no card"].format(size) for size in LAPTOPS}
    heads = [f"{model}, {words.get(quant, quant)}" for model in models for quant in QUANTS]
    rows = [[words["you have"], *heads]]
    for machine, name in machines.items():
        cells = []
        for model in models:
            for quant in QUANTS:
                start = f"{model} {quant} lora 1 x "
                fitting = [
                    case for case in cases if case.startswith(start) and machine in cases[case]["fits"]
                ]
                lengths = [sum(map(int, case.removeprefix(start).split(" + "))) for case in fitting]
                cells.append(f"{max(lengths):,}" if lengths else "–")
        rows.append([name, *cells])
    return table(rows)


def published(language: str) -> str:
    """Published figures beside the forecast for a card, CUDA's context included, in the same unit."""
    words, cases = WORDS[language], read("cards.json")
    rows = [["", words["published"], words["forecast"]]]
    for case, phase, figure, english, chinese in PUBLISHED:
        own = []
        for name in filter(cases.get, (case, f"{case}, kept")):
            size = sum(cases[name]["cuda"][phase].values()) * MIB + CONTEXT
            own.append(f"{size / MIB:,.0f} MiB" if "MiB" in figure else f"{size / 1e9:.1f} GB")
        rows.append([english if language == "en" else chinese, figure, "; ".join(own)])
    return table(rows)


TABLES: Mapping[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "measured": (measured, ("results",)),
    "each way": (each_way, ("results",)),
    "longest": (longest, ("quickstart", "limits")),
    "published": (published, ("memory",)),
}
"""By name: what makes it, and the pages that hold it."""
PAGES: dict[str, list[tuple[str, str]]] = {}
"""By page: the tables that it holds, and its language."""
for name, (_, pages) in TABLES.items():
    for page in pages:
        for suffix, language in ((".md", "en"), (".zh.md", "zh")):
            PAGES.setdefault(f"{page}{suffix}", []).append((name, language))


def fill(text: str, page: str) -> str:
    """The page's text with its tables behind their marks."""
    for name, language in PAGES[page]:
        text = with_table(text, MARK.format(name), TABLES[name][0](language))
    return text


if __name__ == "__main__":
    write_pages(PAGES, fill)
