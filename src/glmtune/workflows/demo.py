"""The demo: tune the bundled model on the examples, and show what that changed.

An ordinary run, made of the same workflows as any user's.
"""

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.chat import Chat
from glmtune.data.convert import write_examples
from glmtune.data.reader import read_examples
from glmtune.errors import ConfigError
from glmtune.files import read_json
from glmtune.load import load_model, load_tokenizer
from glmtune.paths import examples_folder
from glmtune.recipe import Data, load_recipe
from glmtune.run_files import (
    SCORES_FILE,
    free_folder,
    make_folder,
    read_json_lines,
    require_new,
    write_text,
)
from glmtune.training.stopping import Interrupted
from glmtune.workflows.early import recipe_for
from glmtune.workflows.evaluating import evaluating
from glmtune.workflows.events import Event, Note, RunResult, Working
from glmtune.workflows.execute import training

MODEL = "glm-tiny"
TRAINED = ("identity.json", "adverts.jsonl", "chat_history.jsonl", "general.jsonl")
HELD_OUT = {
    "identity": "identity_heldout.json",
    "adverts": "adverts_heldout.jsonl",
    "talks": "chat_history_heldout.jsonl",
}
NAME, AUTHOR = "{{name}}", "{{author}}"
"""Placeholders in the identity rows, replaced by the user's words."""

MOST_KNOWN_BEFORE, LEAST_KNOWN_AFTER, LEAST_FALL = 0.10, 0.90, 0.20
"""Bounds of a demo that has worked: the share of identity questions answered with the new name and author
before training (at most) and after (at least), and the fall of the held-out adverts' loss (at least)."""

SETTINGS: dict[str, Any] = {
    "dtype": "fp32",
    "method": {
        "name": "lora",
        "r": 16,
        "alpha": 32,
        "dropout": 0,
        "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    },
    "train": {
        "epochs": 7,
        "batch_size": 32,
        "lr": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 8,
        "log_every": 20,
    },
    "retain": {"ratio": 0},  # general.jsonl stands for it
    "samples": {"prompts": ["你叫什么名字？"], "max_new_tokens": 32},
}
"""A small model takes a high rate and all its linear layers: do not copy these to a 6 B model."""

SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_p": 0.8, "top_k": 0, "max_new_tokens": 96}


@dataclass(frozen=True, slots=True)
class DemoQuestion:
    """A prompt, or a conversation of several, that the demo asks before and after training."""

    turns: tuple[str, ...]
    """The user's turns, in order; the demo shows the answer to the last."""
    seeds: tuple[int, ...] = (1,)
    """Sampling seeds; the conversation is held once for each, to show how answers vary."""


QUESTIONS = (
    DemoQuestion(("你好，你是谁？",), seeds=(1, 2, 3)),
    DemoQuestion(("你叫什么名字？",)),
    DemoQuestion(("请以“我打碎了夕阳”造句。",), seeds=(1, 2, 3)),
    DemoQuestion(("类型#裙*颜色#蓝色*风格#文艺*裙长#长裙",)),
    DemoQuestion(("请给我留三盒白茶。", "周日下午来拿，可以吗？")),
)
"""Asked before and after. Source: the before and after sets of the write-ups on tuning ChatGLM-6B."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Answers and scores of the model, before or after training."""

    answers: tuple[tuple[str, ...], ...]
    """Answers to each of `QUESTIONS`, one per seed."""
    known: float
    """Share of the held-out identity questions answered with the new name and author."""
    scores: dict[str, dict[str, float]]
    """The `thudm` scores of each file in `HELD_OUT`, by its key there."""
    advert_loss: float
    """Mean loss per answer token of the held-out adverts."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The demo's folder, its training run, and the model's knowledge before and after."""

    path: Path
    run: RunResult
    before: Knowledge
    after: Knowledge

    @property
    def failures(self) -> list[str]:
        """A line for each bound that was missed; empty if the demo has worked."""
        fall = 1 - self.after.advert_loss / self.before.advert_loss
        checks = (
            (self.before.known <= MOST_KNOWN_BEFORE, f"the name was known before: {self.before.known:.0%}"),
            (
                self.after.known >= LEAST_KNOWN_AFTER,
                f"identity questions answered with the new name and author: {self.after.known:.0%}, "
                f"expected {LEAST_KNOWN_AFTER:.0%} or more",
            ),
            (
                fall >= LEAST_FALL,
                f"the loss of the held-out adverts fell by {fall:.0%}, expected {LEAST_FALL:.0%} or more",
            ),
        )
        return [words for has_worked, words in checks if not has_worked]


def run_demo(name: str, author: str, output: Path | None = None) -> Generator[Event, None, DemoResult]:
    """Write the rows, evaluate, train, evaluate again; yield an event for each thing that happens.

    `output` is a new folder; None takes the first free one of runs/demo, runs/demo-2, ... Ctrl-C raises
    `Interrupted`.
    """
    for option, text in (("--name", name), ("--author", author)):
        if not text.strip():
            raise ConfigError(f"{option}: empty", hint="give a word or two")
    folder = output or free_folder(Path("runs/demo"))
    require_new(folder, hint="name another: output=FOLDER")
    try:
        yield from _write_rows(folder / "data", name, author)
        names = (name, author)
        yield Note(f"before: {MODEL} is asked the fixed prompts and the held-out rows")
        before = yield from _measure_knowledge(MODEL, folder, "before", names)
        files = {
            "train": folder / "data" / "train.jsonl",
            "validation": folder / "data" / HELD_OUT["adverts"],
        }
        recipe = load_recipe({**SETTINGS, "model": MODEL, "output": folder / "lora", "data": files})
        run = yield from training(recipe)
        yield Note("after: the same prompts and rows")
        after = yield from _measure_knowledge(str(run.path), folder, "after", names)
        return DemoResult(
            folder,
            run,
            Knowledge(**before, advert_loss=run.metrics["first_eval_loss"]),
            Knowledge(**after, advert_loss=run.metrics["best_eval_loss"]),
        )
    except KeyboardInterrupt:
        first = f"delete {folder}, and " if output else ""  # the default is a new folder each time
        raise Interrupted(f"interrupted; {first}run the demo again") from None


def _write_rows(folder: Path, name: str, author: str) -> Iterator[Note]:
    """Write the example files with name and author filled in, and all training rows into train.jsonl."""
    make_folder(folder)
    for file in (*TRAINED, *HELD_OUT.values()):
        text = (examples_folder() / file).read_text(encoding="utf-8")
        for placeholder, word in ((NAME, name), (AUTHOR, author)):
            text = text.replace(placeholder, json.dumps(word, ensure_ascii=False)[1:-1])  # quotes escaped
        write_text(folder / file, text)
    rows = {file: read_examples(folder / file, Data()) for file in TRAINED}
    write_examples(folder / "train.jsonl", [row for part in rows.values() for row in part], "messages")
    counts = ", ".join(f"{len(part)} from {file}" for file, part in rows.items())
    yield Note(f"rows to train on: {counts}; name and author filled in: {name}, {author}")


def _measure_knowledge(
    model: str, folder: Path, when: str, names: Sequence[str]
) -> Generator[Event, None, dict[str, Any]]:
    """Ask the fixed prompts, answer and score the held-out rows; return `Knowledge`'s fields but the loss."""
    yield Working("asking the fixed prompts")
    opened, tokenizer = load_model(model, dtype="fp32"), load_tokenizer(model)
    answers = []
    for question in QUESTIONS:
        last_answers = []
        for seed in question.seeds:
            chat = Chat(opened, tokenizer, seed=seed, **SAMPLING)
            *_, last_answer = ["".join(chat.ask(turn)).strip() for turn in question.turns]
            last_answers.append(last_answer)
        answers.append(tuple(last_answers))
    del opened, chat  # with its KV cache, before `evaluating` loads the model once more
    scores = {}
    for part, file in HELD_OUT.items():
        recipe = {
            "model": model,
            "dtype": "fp32",
            "output": folder / when / part,
            "data": {"test": folder / "data" / file},
            "evaluate": {"batch_size": 64, "max_new_tokens": 128},
        }
        # its lines are left out, for they would drown the demo's own
        yield from (event for event in evaluating(recipe_for(recipe)) if not isinstance(event, Note))
        scores[part] = read_json(folder / when / part / SCORES_FILE)["thudm"]
    # a question may ask for the name, the author or both: an answer is to give those that its reference gives
    rows = read_json_lines(folder / when / "identity" / "generated_predictions.txt")
    num_known = sum(all(name in row["predict"] for name in names if name in row["labels"]) for row in rows)
    return {"answers": tuple(answers), "known": num_known / len(rows), "scores": scores}
