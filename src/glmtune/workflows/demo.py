"""The demo: tune the bundled model on the examples, and show what that changed.

An ordinary run, made of the same workflows as any user's.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.data.convert import write_examples
from glmtune.data.reader import read_examples
from glmtune.errors import ConfigError
from glmtune.files import read_json
from glmtune.paths import examples_folder
from glmtune.recipe import Data, load_recipe
from glmtune.run_files import (
    SCORES_FILE,
    free_folder,
    make_folder,
    read_json_lines,
    require_new,
)
from glmtune.training.stopping import Interrupted
from glmtune.workflows.early import recipe_for
from glmtune.workflows.evaluating import evaluating
from glmtune.workflows.events import Event, Note, RunResult
from glmtune.workflows.execute import training

MODEL = "glm-tiny"
TRAINED = ("identity.json", "adverts.jsonl", "chat_history.jsonl", "general.jsonl")
HELD_OUT = {
    "identity": "identity_heldout.json",
    "adverts": "adverts_heldout.jsonl",
    "talks": "chat_history_heldout.jsonl",
}
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
    "samples": {"prompts": ["你叫什么名字？"], "max_new_tokens": 96},
}
"""A small model takes a high rate and all its linear layers: do not copy these to a 6 B model."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Answers and scores of the model, before or after training."""

    known: float
    """Share of the held-out identity questions answered with the new name and author."""
    scores: dict[str, dict[str, float]]
    """The `thudm` scores of each file in `HELD_OUT`, by its key there."""
    advert_loss: float
    """Mean loss per answer token of the held-out adverts."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The demo's folder, its training run, answers and knowledge before and after."""

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
        words = {"name": name, "author": author}
        yield from _write_rows(folder / "data", words)
        yield Note(f"before: {MODEL} answers the held-out rows")
        before = yield from _measure_knowledge(MODEL, folder, "before", words)
        files = {"train": folder / "data" / "train.jsonl", "validation": f"examples/{HELD_OUT['adverts']}"}
        recipe = load_recipe({**SETTINGS, "model": MODEL, "output": folder / "lora", "data": files})
        run = yield from training(recipe)
        yield Note("after: the same rows")
        after = yield from _measure_knowledge(str(run.path), folder, "after", words)
        return DemoResult(
            folder,
            run,
            Knowledge(**before, advert_loss=run.metrics["first_eval_loss"]),
            Knowledge(**after, advert_loss=run.metrics["best_eval_loss"]),
        )
    except KeyboardInterrupt:
        first = f"delete {folder}, and " if output else ""  # the default is a new folder each time
        raise Interrupted(f"interrupted; {first}run the demo again") from None


def _write_rows(folder: Path, words: Mapping[str, str]) -> Iterator[Note]:
    """Write all training rows into train.jsonl, with name and author filled in."""
    make_folder(folder)
    rows = {file: read_examples(examples_folder() / file, Data(fill=words)) for file in TRAINED}
    write_examples(folder / "train.jsonl", [row for part in rows.values() for row in part], "messages")
    counts = ", ".join(f"{len(part)} from {file}" for file, part in rows.items())
    yield Note(f"rows to train on: {counts}; name and author filled in: {', '.join(words.values())}")


def _measure_knowledge(
    model: str, folder: Path, when: str, words: Mapping[str, str]
) -> Generator[Event, None, dict[str, Any]]:
    """Answer and score the held-out rows; return `Knowledge`'s fields but the loss."""
    scores = {}
    for part, file in HELD_OUT.items():
        recipe = {
            "model": model,
            "dtype": "fp32",
            "output": folder / when / part,
            "data": {"test": f"examples/{file}", "fill": words},
            "evaluate": {"batch_size": 64, "max_new_tokens": 128},
        }
        # its lines are left out, for they would drown the demo's own
        yield from (event for event in evaluating(recipe_for(recipe)) if not isinstance(event, Note))
        scores[part] = read_json(folder / when / part / SCORES_FILE)["thudm"]
    # a question may ask for the name, the author or both: an answer is to give those that its reference gives
    rows = read_json_lines(folder / when / "identity" / "generated_predictions.txt")
    num_known = sum(
        all(word in row["predict"] for word in words.values() if word in row["labels"]) for row in rows
    )
    return {"known": num_known / len(rows), "scores": scores}
