"""Writes the tables of docs/methods.md that benchmarks/results/methods.json holds the figures of.

python -m tools.method_tables
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import Any

from benchmarks.methods import BASES, LEARNERS, TALKERS
from tools.memory_tables import DOCS, END, read, table

BEGIN = "<!-- {}: made by `python -m tools.method_tables` -->"
PAGES = {"methods.md": "en", "methods.zh.md": "zh"}
WORDS = {
    "en": {
        "lora": "LoRA, r = 8", "ptuning": "P-Tuning v2, 128 tokens", "untrained": "before",
        "loss": "held-out loss", "turn": "turn {}, {} rows", "to": "to",
        "rouge": "ROUGE-L",
        "base": "base", "weights": "weights, MB", "time": "time, fp16 = 1",
        "lora short": "LoRA", "ptuning short": "P-Tuning",
        "trained": "trained", "parameters": "parameters", "rate": "rate", "known": "facts remembered, %",
        "fact loss": "loss of the facts", "forgotten": "loss of what it knew, {} before",
        "all linear": "all linear layers", "full": "every weight",
    },
    "zh": {
        "lora": "LoRA，r = 8", "ptuning": "P-Tuning v2，128 个 token", "untrained": "微调前",
        "loss": "留出行的损失", "turn": "第 {} 轮，{} 行", "to": "到",
        "rouge": "ROUGE-L",
        "base": "基座", "weights": "权重，MB", "time": "用时，fp16 = 1",
        "lora short": "LoRA", "ptuning short": "P-Tuning",
        "trained": "训练的", "parameters": "参数", "rate": "学习率", "known": "记住的事实，%",
        "fact loss": "事实的损失", "forgotten": "原来会的行的损失，之前 {}",
        "all linear": "所有线性层", "full": "全部权重",
    },
}  # fmt: skip


def spread(values: Sequence[float], digits: int, language: str) -> str:
    """Mean, least and most: `3.1 (2.9 to 3.4)`."""
    low, high = (f"{find(values):.{digits}f}" for find in (min, max))
    return f"{mean(values):.{digits}f} ({low} {WORDS[language]['to']} {high})"


def _runs(case: str, name: str) -> list[dict[str, Any]]:
    """The runs of a name, one a seed."""
    runs: dict[str, dict[str, Any]] = read("methods.json")[case]["runs"]
    return [facts for run, facts in runs.items() if run.rpartition(" ")[0] == name]


def turns(language: str) -> str:
    """Answers to each turn, before and after, by method, over a base in fp16."""
    words = WORDS[language]
    before = read("methods.json")["talks"]["runs"]["untrained"]
    counts = {turn: of["num_rows"] for turn, of in before["turns"].items()}
    heads = [f"{words['rouge']}: {words['turn'].format(turn, number)}" for turn, number in counts.items()]
    rows = [["", words["loss"], *heads]]
    rows.append([words["untrained"], "", *(f"{of['rouge-l']:.1f}" for of in before["turns"].values())])
    for method in TALKERS:
        runs = _runs("talks", f"{method} fp16")
        loss = spread([run["eval_loss"][1] for run in runs], 2, language)
        of_turns = [[run["turns"][turn]["rouge-l"] for run in runs] for turn in counts]
        rows.append([words[method], loss, *(spread(values, 1, language) for values in of_turns)])
    return table(rows)


def bases(language: str) -> str:
    """Held-out loss, ROUGE-L and processor time on each base by method, and the size of its weights."""
    words = WORDS[language]
    heads = [
        f"{words[f'{method} short']}: {words[key]}" for method in TALKERS for key in ("loss", "rouge", "time")
    ]
    rows = [[words["base"], words["weights"], *heads]]
    for base in BASES:
        cells = [cell for method in TALKERS for cell in _of_base(method, base, language)]
        size = _runs("talks", f"lora {base}")[0]["weights_bytes"] / 1e6
        rows.append([base, f"{size:.1f}", *cells])
    return table(rows)


def _of_base(method: str, base: str, language: str) -> Iterator[str]:
    runs, plain = _runs("talks", f"{method} {base}"), _runs("talks", f"{method} fp16")
    if not runs:
        yield from ("–", "–", "–")
        return
    yield spread([run["eval_loss"][1] for run in runs], 3, language)
    yield spread([run["rouge-l"] for run in runs], 1, language)
    pairs = zip(runs, plain, strict=True)
    yield spread([run["processor_s"] / other["processor_s"] for run, other in pairs], 2, language)


def facts(language: str) -> str:
    """What each method learned of invented facts, and forgot meanwhile."""
    words = WORDS[language]
    before = _runs("facts", "full")[0]["eval_loss"][0]
    keys = ("trained", "parameters", "rate", "known", "fact loss")
    rows = [[*(words[key] for key in keys), words["forgotten"].format(f"{before:.2f}")]]
    for name, (_, rate) in LEARNERS.items():
        runs = _runs("facts", name)
        shown = name.replace("lora", "LoRA").replace("all linear", words["all linear"])
        rows.append(
            [
                shown.replace("full", words["full"]),
                f"{runs[0]['trainable']:,}",
                f"{rate:g}",
                spread([run["exact"] for run in runs], 0, language),
                spread([run["loss"] for run in runs], 3, language),
                spread([run["eval_loss"][1] for run in runs], 2, language),
            ]
        )
    return table(rows)


TABLES: dict[str, Callable[[str], str]] = {"turns": turns, "bases": bases}


def fill(text: str, page: str) -> str:
    """The page's text with its tables between the marks."""
    for name, make in TABLES.items():
        before, rest = text.split(begin := BEGIN.format(name))
        after = rest.split(END, 1)[1]
        text = f"{before}{begin}\n\n{make(PAGES[page])}\n\n{END}{after}"
    return text


def main() -> None:
    """Write the pages."""
    for page in PAGES:
        path = DOCS / page
        path.write_text(fill(path.read_text(encoding="utf-8"), page), encoding="utf-8")


if __name__ == "__main__":
    main()
