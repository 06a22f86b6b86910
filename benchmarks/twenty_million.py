"""A model of 20 M parameters on real text, the larger base of the forgetting experiments.

ChatGLM3's architecture with a tokenizer of its own, trained from random weights by `glmtune train
method=full` on Chinese and English conversations; no advert is among them. 1,000 adverts are kept apart for
tuning and 200 for its score. The text is third-party and lies outside this repository, in ../shared or where
$GLMTUNE_SHARED says; so do the weights, in --work. Interrupted, the same command goes on with it.

    python -m benchmarks.twenty_million     # half an hour of one idle core

results/twenty_million.json gets the facts: rows, tokens, losses, minutes, machine.
"""

import argparse
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tools.glm_tiny import tokenizer

from benchmarks import measure
from benchmarks.adgen import SHARED
from glmtune.cli.train import run_recipe
from glmtune.load import load_model
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.recipe import load_recipe
from glmtune.run_files import read_json_lines, write_json
from glmtune.tokenizers import read_tokenizer

Facts = dict[str, Any]
RESULT = measure.RESULTS / "twenty_million.json"
NAME = "twenty-million"
PIECES = 5943
"""With nine control tokens 5,952 ids, 93 x 64: the embeddings are 6 M of the 20 M."""
COVERAGE = 0.9995
SIZES = {
    "num_layers": 6,
    "hidden_size": 512,
    "ffn_hidden_size": 1024,
    "kv_channels": 64,
    "num_attention_heads": 8,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "seq_length": 1024,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONVERSATIONS = (
    "oaast_sft_zh.json",
    "sharegpt_zh_1K_format.jsonl",
    "llamafactory/alpaca_zh_demo.json",
    "llamafactory/alpaca_en_demo.json",
)
ROUNDS = 2
"""Of a row; longer conversations are split."""
HELD_OUT = 25
"""One conversation in so many is held out."""
NUM_TASK, NUM_TASK_TEST = 1000, 200
RECIPE: Facts = {
    "dtype": "fp32",
    "method": "full",
    "data": {"max_tokens": 384, "overlong": "cut_any"},
    "train": {
        "steps": 360,
        "batch_size": 8,
        "micro_batch_size": "2048 tokens",
        "lr": 1e-3,
        "warmup_steps": 50,
        "schedule": "cosine",
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "gradient_checkpointing": False,
        "seed": 0,
        "log_every": 10,
        "eval_every": 100,
        "save_every": 20,
        "keep_checkpoints": 1,
    },
    "samples": {"prompts": ["你好，你是谁？", "如何学好英语？"], "max_new_tokens": 48},
    "retain": {"ratio": 0, "report": "off"},
}


def read_json_rows(path: Path) -> list[Facts]:
    """The rows of a JSON array, or of JSON lines."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.lstrip().startswith("[") else read_json_lines(path)


def rounds_of(row: Facts) -> list[tuple[str, str]]:
    """Questions and answers of a row of any of `CONVERSATIONS`, up to the first that is empty."""
    if "conversations" in row:
        texts = [turn["value"] for turn in row["conversations"]]
        found = list(zip(texts[::2], texts[1::2], strict=False))
    else:
        question = "\n".join(filter(None, (row["instruction"], row["input"])))
        found = [*map(tuple, row.get("history", ())), (question, row["output"])]
    empty = (i for i, pair in enumerate(found) if not all(text.strip() for text in pair))
    return found[: next(empty, len(found))]


def split(rounds: Sequence[tuple[str, str]]) -> Iterator[Facts]:
    """Rows of at most `ROUNDS` rounds."""
    for start in range(0, len(rounds), ROUNDS):
        *history, (prompt, response) = rounds[start : start + ROUNDS]
        yield {"prompt": prompt, "response": response, "history": [list(pair) for pair in history]}


def write_rows(path: Path, rows: Sequence[Facts]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_data(folder: Path) -> Facts:
    """general.jsonl and general_heldout.jsonl, task.jsonl and task_test.jsonl, sentences.txt; their sizes."""
    talks = [rounds for name in CONVERSATIONS for row in read_json_rows(SHARED / "data" / name)
             if (rounds := rounds_of(row))]  # fmt: skip
    random.Random(0).shuffle(talks)
    parts = {
        "general_heldout": [row for talk in talks[::HELD_OUT] for row in split(talk)],
        "general": [row for i, talk in enumerate(talks) if i % HELD_OUT for row in split(talk)],
    }
    adverts = SHARED / "data/AdvertiseGen"
    for name, file, number in (
        ("task", "train_first5000.json", NUM_TASK),
        ("task_test", "dev.json", NUM_TASK_TEST),
    ):
        rows = read_json_rows(adverts / file)[:number]
        parts[name] = [{"prompt": row["content"], "response": row["summary"]} for row in rows]
    for name, rows in parts.items():
        write_rows(folder / f"{name}.jsonl", rows)
    lines = [
        line
        for row in parts["general"]
        for text in (row["prompt"], row["response"])
        for line in text.splitlines()
    ]
    (folder / "sentences.txt").write_text("\n".join(filter(str.strip, lines)) + "\n", encoding="utf-8")
    return {name: len(rows) for name, rows in parts.items()}


def make_base(work: Path) -> None:
    """Text, tokenizer and random weights, the same for everyone."""
    rows, partial = write_data(work), work / "base.partial"
    tokenizer.train(work / "sentences.txt", partial, PIECES, coverage=COVERAGE)
    size = len(read_tokenizer(partial, "chatglm3"))
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(padded_vocab_size=size, **SIZES))
    model.save_pretrained(partial)
    write_json(partial / "rows.json", rows)
    partial.rename(work / "base")


def recipe_of(work: Path, words: Sequence[str] = ()) -> Any:
    """The run's recipe, with more settings as `key=value`."""
    paths = {
        "model": str(work / "base"),
        "output": str(work / "run"),
        "data": {
            **RECIPE["data"],
            "train": str(work / "general.jsonl"),
            "validation": str(work / "general_heldout.jsonl"),
        },
    }
    return load_recipe({**RECIPE, **paths}, list(words))


def pack(work: Path) -> Path:
    """The run's newest checkpoint as a model's folder: `NAME` in `work`."""
    folder = work / NAME
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "run/last", folder, ignore=shutil.ignore_patterns("state.pt"))
    return folder


def facts(work: Path, options: argparse.Namespace) -> Facts:
    """Rows, tokens, losses by step, minutes of steps and machine of the run as far as it is."""
    steps = read_json_lines(work / "run/metrics.jsonl")
    rows = json.loads((work / "base/rows.json").read_text(encoding="utf-8"))
    trained = [line for line in steps if "loss" in line]
    model = load_model(work / "run/last", device="cpu")
    return {
        **measure.begin("twenty_million", "loss", options),
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": rows,
        "steps": [len(trained), RECIPE["train"]["steps"]],
        "learned_tokens": sum(line["tokens"] for line in trained),
        "tokens": round(sum(line["tokens_per_s"] * line["step_s"] for line in trained)),
        "minutes": round(sum(line["step_s"] for line in trained) / 60, 1),
        "loss": {line["step"]: round(line["loss"], 3) for line in trained if line["step"] % 20 == 0},
        "eval_loss": {line["step"]: round(line["eval_loss"], 4) for line in steps if "eval_loss" in line},
    }


def main(words: Sequence[str] | None = None) -> Path:
    """Make the model, or go on with it; return its folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", action="store_true", help="train no further: take the last checkpoint")
    parser.add_argument("--set", nargs="*", default=[], help="other settings, as train.steps=100")
    options = measure.parse(parser, words)
    torch.set_num_threads(options.threads)
    work = options.work / NAME
    if not (work / "base").exists():
        make_base(work)
    if not options.pack:
        run_recipe(recipe_of(work, options.set), resume=(work / "run/last").exists(), force=False)
    found = facts(work, options)
    if options.dry:
        print(json.dumps(found, indent=1))
    else:
        write_json(RESULT, found)
    return pack(work)


if __name__ == "__main__":
    main()
