"""Writes the data sets of `examples/` that are made of templates.

    python -m tools.examples.build examples [--seed 0]

Same seed, same bytes. The text is in `texts/`, in the format of `tools/glm_tiny/blocks.py`.
"""

import argparse
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.examples import adverts
from tools.glm_tiny import corpus
from tools.glm_tiny.blocks import Entry, Row, read_blocks, rows_of

from glmtune.data.convert import FILES

TEXTS = Path(__file__).with_name("texts")
NUM_ADVERTS, NUM_HELDOUT_ADVERTS = 240, 40
NUM_HELDOUT_TURNS = 30
NUM_GENERAL = {"fact": 60, "chat_zh": 50, "sentence": 40, "sum": 25, "instruct": 25, "chat_en": 20}
KEPT_TO_ASK = ("日本", "Japan")
"""In no row of general.jsonl: whether a fact outlives the training is asked of one that is not repeated."""

Written = list[dict[str, Any]]


def make(seed: int = 0) -> dict[str, Written]:
    """The rows of every file, by its name."""
    train, held_out = _talks(seed)
    train_adverts, heldout_adverts = _adverts(seed)
    return {
        "identity.json": _identity("identity.txt", seed),
        "identity_heldout.json": _identity("identity_heldout.txt", seed),
        "general.jsonl": _general(seed),
        "adverts.jsonl": train_adverts,
        "adverts_heldout.jsonl": heldout_adverts,
        "chat_history.jsonl": [row for talk in train for row in _turns(talk)],
        "chat_history_heldout.jsonl": [row for talk in held_out for row in _turns(talk)],
    }


def write(folder: Path, seed: int = 0) -> None:
    """Write the files into the folder, over those that are there."""
    for name, rows in make(seed).items():
        path = folder / name
        FILES[path.suffix](path, rows)


def _identity(name: str, seed: int) -> Written:
    """Questions in a drawn order; the names to fill in are declared in identity.txt."""
    slots: dict[str, list[Entry]] = {}
    blocks = {file: read_blocks(TEXTS / file, slots) for file in dict.fromkeys(("identity.txt", name))}
    rng = random.Random(f"{seed} {name}")
    rows = [row for block in blocks[name] for row in rows_of(block, "identity", slots, rng)]
    rng.shuffle(rows)
    return [{"instruction": row.prompt, "input": "", "output": row.response} for row in rows]


def _general(seed: int) -> Written:
    """Some of what glm-tiny was trained on, one wording of a question each."""
    rng = random.Random(f"{seed} general")
    known = [
        row for row in corpus.make()[0] if not (row.history or any(w in row.prompt for w in KEPT_TO_ASK))
    ]
    drawn: Written = []
    for kind, count in NUM_GENERAL.items():
        answers = {row.prompt: row.response for row in known if row.kind == kind}
        drawn += [
            {"prompt": prompt, "response": answers[prompt]} for prompt in rng.sample(list(answers), count)
        ]
    rng.shuffle(drawn)
    return drawn


def _adverts(seed: int) -> tuple[Written, Written]:
    """Adverts to train on, and adverts held out: other lists of attributes, each of which is known."""
    slots: dict[str, list[Entry]] = {}
    for path in (corpus.TEXTS / "adverts.txt", TEXTS / "adverts.txt"):
        read_blocks(path, slots)
    drawn = adverts.rows(slots, random.Random(f"{seed} adverts"))
    train, others = drawn[:NUM_ADVERTS], drawn[NUM_ADVERTS:]
    known = {pair for row in train for pair in adverts.values(row["content"])}
    fitting = [row for row in others if known.issuperset(adverts.values(row["content"]))]
    return train, fitting[:NUM_HELDOUT_ADVERTS]


def _talks(seed: int) -> tuple[list[Row], list[Row]]:
    """Talks to train on and talks held out, each as its last row; no two begin alike."""
    slots: dict[str, list[Entry]] = {}
    rng = random.Random(f"{seed} talks")
    blocks = read_blocks(TEXTS / "talks.txt", slots)
    talks = {row.history[0][0]: row for block in blocks for row in rows_of(block, "talk", slots, rng)}
    drawn = list(talks.values())
    rng.shuffle(drawn)
    return _hold_out(drawn, NUM_HELDOUT_TURNS)


def _hold_out(talks: Sequence[Row], turns: int) -> tuple[list[Row], list[Row]]:
    """Hold out the first talks that fit into so many turns."""
    train, held_out = [], []
    for talk in talks:
        fits = len(talk.history) < turns
        (held_out if fits else train).append(talk)
        turns -= (len(talk.history) + 1) * fits
    return train, held_out


def _turns(talk: Row) -> Iterator[Mapping[str, Any]]:
    """A row for each turn, with the turns before it."""
    turns = [*talk.history, (talk.prompt, talk.response)]
    for number, (prompt, response) in enumerate(turns):
        history = [list(turn) for turn in turns[:number]]
        yield {"prompt": prompt, "response": response, "history": history}


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Write the data sets of examples/.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.folder, args.seed)


if __name__ == "__main__":
    main()
