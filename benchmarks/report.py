"""Writes docs/performance.md and .zh.md from results/*.jsonl and the notes beside this file.

The newest line of each case counts, on each kind of machine. What profiles say about the goals that were
missed is written by hand, in notes.md and notes.zh.md.

    python -m benchmarks.report
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.goals import GOALS, Goal
from benchmarks.measure import OLDER, RESULTS, Record

Results = Mapping[str, Mapping[str, Record]]
"""Records by case, then by machine."""
HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
WORDS: dict[str, dict[str, str]] = {
    "en": {
        "title": "# Speed, beside named peers\n\n[中文](performance.zh.md)",
        "goals": "\n## Goals\n", "goal": "goal; measured: median (least to most)",
        "met": "met", "missed": "**missed**", "open": "not measured", "to": "to",
        "none": "no goal",
        "figures": "\n## Figures", "figure": "{unit}: median (least to most)",
        "machine": "{processor}, {cores} cores, {memory_gib} GiB, {instructions}; {threads} threads; "
        "{versions}; load {load}; {rounds} rounds, {when}",
        "skipped": "not taking part", "settings": "settings",
    },
    "zh": {
        "title": "# 速度：与点名的对手比较\n\n[English](performance.md)",
        "goals": "\n## 目标\n", "goal": "目标；测得：中位数（最小到最大）",
        "met": "达到", "missed": "**未达到**", "open": "未测", "to": "到",
        "none": "无目标",
        "figures": "\n## 数字", "figure": "{unit}：中位数（最小到最大）",
        "machine": "{processor}，{cores} 核，{memory_gib} GiB，{instructions}；{threads} 个线程；"
        "{versions}；负载 {load}；{rounds} 轮，{when}",
        "skipped": "没有参加", "settings": "设置",
    },
}  # fmt: skip
CASES: dict[str, dict[str, str]] = {
    "decode 1b": {
        "en": "Decoding, 1 B (16 layers x 2048), batch 1",
        "zh": "解码，1 B（16 层 x 2048），单条",
    },
    "prefill 128": {"en": "Reading a prompt of 128 tokens, 1 B", "zh": "读入 128 个 token 的提示，1 B"},
    "prefill packed": {
        "en": "Reading 16 ADGEN prompts, 1 B; padding is no token",
        "zh": "读入 16 条 ADGEN 提示，1 B；填充不算 token",
    },
    "decode 170m": {
        "en": "Decoding ADGEN, 170 M (12 layers x 768)",
        "zh": "解码 ADGEN，170 M（12 层 x 768）",
    },
    "decode tiny": {"en": "Decoding, glm-tiny, batch 1", "zh": "解码，glm-tiny，单条"},
    "evaluate 96": {
        "en": "A whole evaluation of 96 ADGEN rows, 170 M",
        "zh": "完整评估 96 行 ADGEN，170 M",
    },
    "evaluate 1070": {
        "en": "A whole evaluation of all 1,070 rows of ADGEN's dev split, 170 M",
        "zh": "完整评估 ADGEN 验证集的全部 1,070 行，170 M",
    },
    "decode 6b": {
        "en": "Decoding on a GPU, ChatGLM3-6B (28 layers x 4096), random weights",
        "zh": "GPU 解码，ChatGLM3-6B（28 层 x 4096），随机权重",
    },
    "products": {
        "en": "Linear layers of a block of the 1 B shape, by rows at once",
        "zh": "1 B 形状一个块的线性层，按一次的行数",
    },
    "product": {
        "en": "One linear layer of 768 x 2048, by the type of its weights",
        "zh": "768 x 2048 的一个线性层，按权重类型",
    },
    "train lora 4": {
        "en": "Training LoRA, 170 M, 4 ADGEN rows a step; padding is no token",
        "zh": "训练 LoRA，170 M，每步 4 行 ADGEN；填充不算 token",
    },
    "train lora 4, memory": {
        "en": "The same: memory of a step above the weights",
        "zh": "同上：一步在权重之外的内存",
    },
    "train lora 16": {"en": "The same, 16 rows a step", "zh": "同上，每步 16 行"},
    "train lora 16, memory": {"en": "The same: memory of a step", "zh": "同上：一步的内存"},
    "train checkpointing": {
        "en": "4 rows a step, all layers recomputed on both sides",
        "zh": "每步 4 行，双方重算所有层",
    },
    "train checkpointing, memory": {"en": "The same: memory of a step", "zh": "同上：一步的内存"},
    "train all linear": {
        "en": "4 rows a step, LoRA in all linear layers",
        "zh": "每步 4 行，所有线性层加 LoRA",
    },
    "train all linear, memory": {"en": "The same: memory of a step", "zh": "同上：一步的内存"},
    "train glm4": {
        "en": "4 rows a step, `Glm4ForCausalLM` of that size",
        "zh": "每步 4 行，同样大小的 `Glm4ForCausalLM`",
    },
    "train glm4, memory": {"en": "The same: memory of a step", "zh": "同上：一步的内存"},
    "train ptuning": {
        "en": "4 rows a step, P-Tuning v2 with 128 prefix tokens",
        "zh": "每步 4 行，P-Tuning v2，前缀 128 个 token",
    },
    "train ptuning, memory": {"en": "The same: memory of a step", "zh": "同上：一步的内存"},
    "train defaults": {
        "en": "Training with nothing set: ours 16 rows a step, the peer 8",
        "zh": "不作任何设置的训练：我们每步 16 行，对手 8 行",
    },
    "train defaults, memory": {"en": "The same: memory of a step", "zh": "同上：一步的内存"},
    "train gpu 6b": {
        "en": "Training LoRA on a GPU, ChatGLM3-6B, 8k tokens packed unless told",
        "zh": "GPU 训练 LoRA，ChatGLM3-6B，未注明时打包 8k token",
    },
    "train gpu 6b, memory": {"en": "The same: memory of the whole process", "zh": "同上：整个进程的显存"},
    "train gpu 9b": {"en": "The same, GLM-4-9B", "zh": "同上，GLM-4-9B"},
    "train gpu 9b, memory": {"en": "The same: memory of the whole process", "zh": "同上：整个进程的显存"},
    "laptop 6b": {
        "en": "Training LoRA without a GPU, ChatGLM3-6B in INT4, one row of 256 tokens",
        "zh": "没有 GPU 训练 LoRA，INT4 的 ChatGLM3-6B，一行 256 个 token",
    },
    "lora tiny": {"en": "Training LoRA on glm-tiny", "zh": "在 glm-tiny 上训练 LoRA"},
    "encode chatglm3": {
        "en": "Encoding 20,000 ADGEN rows, ChatGLM3's tokenizer",
        "zh": "编码 20,000 行 ADGEN，ChatGLM3 的分词器",
    },
    "encode chatglm2": {
        "en": "Encoding 20,000 ADGEN rows, ChatGLM2's tokenizer",
        "zh": "编码 20,000 行 ADGEN，ChatGLM2 的分词器",
    },
    "encode chatglm": {
        "en": "Encoding 20,000 ADGEN rows, ChatGLM-6B's tokenizer",
        "zh": "编码 20,000 行 ADGEN，ChatGLM-6B 的分词器",
    },
    "encode glm4": {
        "en": "Encoding 20,000 ADGEN rows, GLM-4's tokenizer",
        "zh": "编码 20,000 行 ADGEN，GLM-4 的分词器",
    },
    "scores": {"en": "Scoring 1,070 answers", "zh": "给 1,070 个回答评分"},
    "demo": {"en": "`glmtune demo`, as typed", "zh": "`glmtune demo`，照输入的命令"},
    "chat": {
        "en": "`glmtune chat glm-tiny` to its first token",
        "zh": "`glmtune chat glm-tiny` 到第一个 token",
    },
}
"""Their titles, in the order of the page; other cases follow under their names."""


def read_results(folder: Path = RESULTS) -> Results:
    """The newest record of each case and machine."""
    found: dict[str, dict[str, Record]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            found.setdefault(record["case"], {})[name_machine(record)] = record
    return found


def name_machine(record: Record) -> str:
    """Its GPU or processor, whether that multiplies tiles, and its caps: they make another machine of it."""
    machine = record["machine"]
    if caps := machine.get("caps"):
        for name, of_older in OLDER.items():
            if caps == of_older:
                return f"{_processor(machine)}, `--cap {name}`"
        return f"{_processor(machine)}, {_stated(caps)}"
    return str(machine.get("GPU", _processor(machine)))


def _processor(machine: Mapping[str, Any]) -> str:
    processor = machine["processor"].removeprefix("x86_64, ").removesuffix(" Processor").replace("(R)", "")
    has_tiles = "amx_int8" in machine["instructions"]
    return f"{processor}, AMX" if has_tiles else processor


def _stated(caps: Mapping[str, str]) -> str:
    return " ".join(f"`{name}={value}`" for name, value in caps.items())


def write_page(results: Results, language: str, notes: str) -> str:
    """The whole page."""
    words = WORDS[language]
    machines = _machines_with_a_goal(results)
    lines = [words["title"], words["goals"], *_heading(words["goal"], machines)]
    lines += [_goal(goal, results.get(goal.case, {}), machines, language) for goal in GOALS]
    lines += ["", notes.rstrip(), *([words["figures"]] if results else [])]
    for case in sorted(results, key=_place):
        lines += ["", f"### {CASES.get(case, {}).get(language, case)}", "", *_case(results[case], words)]
    return "\n".join(lines) + "\n"


def _machines_with_a_goal(results: Results) -> dict[str, Record]:
    """A record of each."""
    cases = {case: [goal for goal in GOALS if goal.case == case] for case in sorted(results)}
    return {
        name: record
        for case, goals in cases.items()
        for name, record in results[case].items()
        if any(goal.limit(record) is not None and goal.figures(record) for goal in goals)
    }


def _place(case: str) -> tuple[int, str]:
    return (list(CASES).index(case) if case in CASES else len(CASES), case)


def _heading(first: str, machines: Iterable[str]) -> list[str]:
    row = _row([first, *machines])
    return [row, "|" + "---|" * (row.count("|") - 1)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _goal(goal: Goal, records: Mapping[str, Record], machines: Mapping[str, Record], language: str) -> str:
    words = WORDS[language]
    cells = [_verdict(goal, records.get(name), any_record, words) for name, any_record in machines.items()]
    return _row([goal.english if language == "en" else goal.chinese, *cells])


def _verdict(goal: Goal, record: Record | None, of_machine: Record, words: Mapping[str, str]) -> str:
    if goal.limit(of_machine) is None:
        return words["none"]
    found = goal.figures(record) if record else []
    if not record or not found:
        return words["open"]
    unit = "" if goal.unit == "x" else f" {goal.unit}"
    return f"{_figure(found, words, unit)} {words['met' if goal.is_met(found, record) else 'missed']}"


def _figure(found: Sequence[float], words: Mapping[str, str], unit: str = "") -> str:
    spread = f" ({_number(min(found))} {words['to']} {_number(max(found))})" if len(found) > 1 else ""
    return f"{_number(median(found))}{unit}{spread}"


def _case(records: Mapping[str, Record], words: Mapping[str, str]) -> Iterator[str]:
    unit = next(iter(records.values()))["unit"]
    yield from _heading(words["figure"].format(unit=unit), records)
    for side in dict.fromkeys(name for record in records.values() for name in record["sides"]):
        every = [record["sides"].get(side) for record in records.values()]
        yield _row([side, *(_figure(found, words) if found else "" for found in every)])
    yield ""
    for record in records.values():
        yield f"- {_machine(record, words)}"
        yield from (f"  - {line}" for line in _remarks(record, words))


def _remarks(record: Record, words: Mapping[str, str]) -> Iterator[str]:
    for name, parts in record.get("parts", {}).items():
        yield f"{name}: {_listed(parts)}"
    if checks := record.get("checks"):
        yield _listed(checks)
    for name, why in record.get("skipped", {}).items():
        yield f"{words['skipped']}: {name} ({why})"
    if settings := record["settings"]:
        yield f"{words['settings']}: {_listed(settings)}"


def _machine(record: Record, words: Mapping[str, str]) -> str:
    machine = dict(record["machine"])
    known = {key: machine.pop(key) for key in ("processor", "cores", "memory_gib", "threads", "load")}
    instructions = ", ".join(
        [*machine.pop("instructions"), *filter(None, [_stated(machine.pop("caps", {}))])]
    )
    versions = ", ".join(f"{name} {value}" for name, value in machine.items())
    return words["machine"].format(
        **known, instructions=instructions, versions=versions, rounds=record["rounds"], when=record["when"]
    )


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return _number(value)


def _number(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def pages() -> dict[Path, str]:
    """What each page of the documentation should say."""
    results = read_results()
    names = {"en": ".md", "zh": ".zh.md"}
    return {
        DOCS / f"performance{suffix}": write_page(
            results, language, (HERE / f"notes{suffix}").read_text(encoding="utf-8")
        )
        for language, suffix in names.items()
    }


def main() -> None:
    """Write them."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
