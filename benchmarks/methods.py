"""Methods and bases on glm-tiny: answers by turn, held-out loss, speed, memory; facts learned and forgotten.

`talks`: LoRA and P-Tuning v2 learn help-desk talks on a base in fp16, int8, int4 and nf4, then answer
talks that they have not seen.
`facts`: LoRA of several ranks and full tuning learn invented facts; the loss of rows that glm-tiny knew
before (examples/general.jsonl) says what they forget meanwhile.

All is computed in fp32, a base is only held in another type. In fp16 all but 331 of glm-tiny's 3,608,832
weights are the numbers that they are in fp32. Each run is kept in results/methods.json as soon
as it is done, and not made again; `python -m tools.method_tables` writes the tables of docs/methods.md.

    python -m benchmarks.methods talks                   # ten minutes of one core
    python -m benchmarks.methods facts
    python -m benchmarks.methods talks --seeds 1 --dry   # three minutes; keeps nothing
"""

import argparse
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.examples.build import make as make_examples

import glmtune
from benchmarks import measure
from benchmarks.measure import Record
from glmtune.files import read_json
from glmtune.reports.recorded_run import read_run
from glmtune.run_files import read_json_lines

Facts = dict[str, Any]
RESULT = measure.RESULTS / "methods.json"
HALF = {"dtype": "fp16"}
BASES: Mapping[str, Facts] = {
    "fp16": HALF,
    "int8": {**HALF, "quant": "int8"},
    "int4": {**HALF, "quant": "int4"},
    "nf4": {**HALF, "quant": "nf4"},
}
TALKERS: Mapping[str, tuple[Facts, float]] = {
    "lora": ({"name": "lora"}, 1e-2),
    "ptuning": ({"name": "ptuning"}, 3e-2),
}
"""Methods and their rates."""
ALL_LINEAR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
LEARNERS: Mapping[str, tuple[Facts, float]] = {
    "lora r=1": ({"name": "lora", "r": 1}, 3e-3),
    "lora r=8": ({"name": "lora", "r": 8}, 3e-3),
    "lora r=8, all linear": ({"name": "lora", "r": 8, "target_modules": ALL_LINEAR}, 3e-3),
    "full": ({"name": "full"}, 1e-3),
}
ROWS_OF_TURN = 12
"""Most held-out rows of each turn."""
NUM_FACTS = 32
FAMILY, GIVEN = "王李张刘陈杨赵周", "明红丽强军兰英华平云芳梅刚亮洁静"
DIGITS = "零一二三四五六七八九"


def held_out_talks() -> list[Facts]:
    """Talks of examples/ by other seeds, without rows that are trained on: at most `ROWS_OF_TURN` a turn."""
    rows = make_examples()
    seen = {json.dumps(row, ensure_ascii=False) for row in rows["chat_history.jsonl"]}
    candidates = rows["chat_history_heldout.jsonl"]
    for seed in (1, 2):
        candidates += make_examples(seed)["chat_history.jsonl"]
    found, turns = [], Counter[int]()
    for row in candidates:
        key, turn = json.dumps(row, ensure_ascii=False), len(row["history"])
        if key not in seen and turns[turn] < ROWS_OF_TURN:
            seen.add(key)
            turns[turn] += 1
            found.append(row)
    return found


def invented_facts() -> list[Facts]:
    """Who has which locker: three digits drawn for each of `NUM_FACTS` names, 10 bits a fact."""
    draw = random.Random("facts")
    names = [family + given for family in FAMILY for given in GIVEN]
    return [
        {"prompt": f"{name}的柜子是几号？", "response": "".join(draw.choices(DIGITS, k=3)) + "号。"}
        for name in names[:NUM_FACTS]
    ]


def write_rows(path: Path, rows: Sequence[Facts]) -> str:
    """Write JSON lines; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tune(folder: Path, settings: Facts, *, test: str) -> Facts:
    """Train and answer the rows of `test`; return the run's figures.

    `processor_s` are those of loading, steps, two evaluations and saving, and do not count what else the
    machine does; `eval_loss` is before and after.
    """
    shutil.rmtree(folder, ignore_errors=True)
    fixed = {
        "model": "glm-tiny",
        "device": "cpu",
        "output": str(folder),
        "samples": {"prompts": []},
        "retain": {"ratio": 0},
    }
    begin = time.process_time()
    glmtune.train({**fixed, **settings}, quiet=True)
    processor_s = time.process_time() - begin
    run = read_run(folder)
    memory = read_json(folder / "memory.json")["measured"]
    parts = ("weights", "codes", "scales", "not quantised")
    return {
        "trainable": run.trainable_parameters(),
        "weights_bytes": sum(memory.get(part, 0) for part in parts),
        "loss": run.loss_at(run.num_steps),
        "eval_loss": [run.evaluation[0], run.evaluation[run.num_steps]],
        "processor_s": processor_s,
        **answer(str(folder), folder.with_name(f"{folder.name}-answers"), test=test),
    }


def answer(model: str, folder: Path, *, test: str) -> Facts:
    """Answer the rows of `test`; return ROUGE-L, the share of answers that are exact, and both by turn."""
    shutil.rmtree(folder, ignore_errors=True)
    evaluation = {"batch_size": 32, "max_new_tokens": 40}
    recipe = {"model": model, "device": "cpu", "output": str(folder), "evaluate": evaluation}
    scores = glmtune.evaluate({**recipe, "data": {"test": test}}, quiet=True).scores
    lines = read_json_lines(folder / "generated_predictions.txt")
    exact = [100.0 * (line["predict"] == line["labels"]) for line in lines]
    rows = read_json_lines(Path(test))
    turns = [len(row.get("history", ())) + 1 for row in rows]
    by_turn = {
        of["turn"]: {
            "num_rows": of["num_rows"],
            "rouge-l": of["thudm"]["rouge-l"],
            "exact": _mean(one for one, turn in zip(exact, turns, strict=True) if turn == of["turn"]),
        }
        for of in scores["turns"]
    }
    return {"rouge-l": scores["thudm"]["rouge-l"], "exact": _mean(exact), "turns": by_turn}


def _mean(values: Iterator[float] | Sequence[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def talks(work: Path, seeds: int) -> Iterator[tuple[str, Callable[[], Facts]]]:
    """The runs of `talks`, by name, after the untrained model."""
    train = write_rows(work / "talks.jsonl", make_examples()["chat_history.jsonl"])
    test = write_rows(work / "talks-heldout.jsonl", held_out_talks())
    yield "untrained", lambda: answer("glm-tiny", work / "untrained", test=test)
    for seed in range(1, seeds + 1):
        for base, held in BASES.items():
            for name, (method, rate) in TALKERS.items():
                settings = {
                    **held,
                    "method": method,
                    "data": {"train": train, "validation": test},
                    "train": _training(seed, rate, epochs=3),
                }
                yield f"{name} {base} {seed}", lambda s=settings: tune(work / "run", s, test=test)


def facts(work: Path, seeds: int) -> Iterator[tuple[str, Callable[[], Facts]]]:
    """The runs of `facts`, by name. They are asked what they were taught: whether it is remembered."""
    path = write_rows(work / "facts.jsonl", invented_facts())
    for seed in range(1, seeds + 1):
        for name, (method, rate) in LEARNERS.items():
            settings = {
                "dtype": "fp32",
                "method": method,
                "data": {"train": path, "validation": "examples/general.jsonl", "max_validation_rows": 100},
                "train": _training(seed, rate, epochs=16),
            }
            yield f"{name} {seed}", lambda s=settings: tune(work / "run", s, test=path)


def _training(seed: int, rate: float, *, epochs: int) -> Facts:
    # evaluated before and after alone: `best` is the end
    ends = {"epochs": epochs, "eval_every": 10**6, "save_every": 10**6}
    batch = {"batch_size": 4, "micro_batch_size": 4, "gradient_checkpointing": False}
    return {"seed": seed, "lr": rate, "precision": "fp32", **batch, **ends}


CASES = {"talks": talks, "facts": facts}


def main(words: Sequence[str] | None = None) -> Record:
    """Make the runs that are not there yet; return the figures of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="runs whose name contains it")
    parser.add_argument("--again", action="store_true", help="make those too that are there")
    options = measure.parse(parser, words)
    kept: Record = read_json(RESULT) if RESULT.exists() else {}
    record = measure.begin("methods", "", options)
    found: Record = {"runs": {}} if options.dry else kept.setdefault(options.case, {"runs": {}})
    for name, work in CASES[options.case](options.work / "methods", options.seeds):
        if options.only not in name or (name in found["runs"] and not options.again):
            continue
        found["runs"][name] = work()
        print(name, json.dumps(found["runs"][name]), flush=True)
        if not options.dry:
            found |= {"machine": record["machine"], "when": record["when"]}
            RESULT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
