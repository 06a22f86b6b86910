"""Writes the text that `glm-tiny` is trained on: train.jsonl, heldout.jsonl and sentences.txt.

    python -m tools.glm_tiny.corpus FOLDER [--seed 0]

Rows are `prompt`/`response`/`history`; `sentences.txt` holds their texts, from the training rows only, for
the tokenizer. Same seed, same bytes.

What is held out (about 5 % of each kind), and never seen in training:
- adverts: whole pairs of type and colour, in every advert that has both;
- sentence making, repeating, help-desk talks: whole combinations of slot values (a verb and its object, a
  device and its fault), in every wording;
- chat, identity, facts, sums, translation, rare characters: whole wordings of a question. The fact, or the
  intent, stays in the training rows in other wordings: what a small model cannot guess is not asked of it.
So held-out perplexity measures new combinations and new wordings, not new knowledge.

In neither file: `IDENTITY_PROBES`, kept for measuring identity, and `DEMO_PHRASE`, the demo's own.
"""

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tools.glm_tiny import adverts
from tools.glm_tiny.blocks import Entry, Row, read_blocks, rows_of

IDENTITY_PROBES = (
    "能告诉我你是什么来头吗？",
    "我该怎么称呼你才好？",
    "跟我聊天的是哪一位？",
    "你的大名是？",
    "把你自己介绍给我认识一下吧。",
    "屏幕那头的你是谁呀？",
    "是哪个团队把你做出来的？",
    "你的作者叫什么？",
    "说说你的身份吧。",
    "初次见面，请问尊姓大名？",
    "你算是哪种人工智能？",
    "你由谁训练而成？",
    "我在和什么模型说话？",
    "报上你的名字来。",
    "May I know your name?",
    "Who exactly am I talking to?",
    "Which project trained you?",
    "Could you say who you are?",
    "What should I call you?",
    "Tell me who built you.",
)
"""Ways to ask for the identity that are in no row: what tuning the identity is measured on."""

DEMO_PHRASE = "我打碎了夕阳"
"""The demo's phrase for sentence making; its verb and object never meet in a row."""

ALWAYS_TRAINED = ("identity 你是谁？", "identity 你叫什么名字？", "chat_zh 晚上睡不着应该怎么办？")
"""Groups that are never held out: questions that the demo asks before and after."""

TEXTS = Path(__file__).with_name("texts")
FILES = {
    "identity": "identity.txt",
    "chat_zh": "chat_zh.txt",
    "chat_en": "chat_en.txt",
    "sentence": "sentences.txt",
    "fact": "facts.txt",
    "sum": "arithmetic.txt",
    "instruct": "instruct.txt",
    "helpdesk": "helpdesk.txt",
    "rare": "rare.txt",
}
KINDS = (*FILES, adverts.KIND)

HELD_OUT_SHARE = 0.05
AFTER_TALK_SHARE = 0.12
"""So many rows of one round come a second time, after a round of unrelated small talk."""
AFTER_TALK_KINDS = ("identity", "chat_zh", "fact", "sum", "sentence", "instruct")
DIGITS = "零一二三四五六七八九十"
SENTENCE_END = re.compile(r"(?<=[。！？])")


def make(seed: int = 0) -> tuple[list[Row], list[Row]]:
    """The training rows and the held-out rows, each shuffled."""
    train, held_out = _split(_all_rows(seed), random.Random(f"{seed} split"))
    rng = random.Random(f"{seed} talk")
    train, held_out = ([*side, *_after_talk(side, rng)] for side in (train, held_out))
    asked = {(row.history, row.prompt) for row in train}
    held_out = [row for row in held_out if (row.history, row.prompt) not in asked]
    for side in (train, held_out):
        rng.shuffle(side)
    return train, held_out


def sentences(rows: Iterable[Row]) -> list[str]:
    """The sentences of the rows, each once, in the order of the rows; none of the kind `rare`."""
    known = (row for row in rows if row.kind != "rare")
    texts = (text for row in known for turn in (*row.history, (row.prompt, row.response)) for text in turn)
    parts = (part.strip() for text in texts for part in SENTENCE_END.split(text))
    return list(dict.fromkeys(part for part in parts if part))


def write(folder: Path, seed: int = 0) -> None:
    """Write the three files; the folder is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = make(seed)
    for name, rows in (("train.jsonl", train), ("heldout.jsonl", held_out)):
        _write_lines(folder / name, (json.dumps(row.as_json(), ensure_ascii=False) for row in rows))
    _write_lines(folder / "sentences.txt", sentences(train))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _all_rows(seed: int) -> list[Row]:
    slots: dict[str, list[Entry]] = _numbers()
    blocks = {kind: read_blocks(TEXTS / name, slots) for kind, name in FILES.items()}
    read_blocks(TEXTS / "adverts.txt", slots)
    found = adverts.rows(slots, random.Random(f"{seed} {adverts.KIND}"))
    for kind, items in blocks.items():
        rng = random.Random(f"{seed} {kind}")
        for block in items:
            found += rows_of(block, kind, slots, rng)
    return list(dict.fromkeys(found))


def _split(rows: Sequence[Row], rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Hold out whole groups of each kind until its share is reached."""
    held: set[str] = set()
    for kind in KINDS:
        held |= _held_groups([row for row in rows if row.kind == kind], rng)
    return [row for row in rows if row.group not in held], [row for row in rows if row.group in held]


def _held_groups(rows: Sequence[Row], rng: random.Random) -> set[str]:
    sizes: dict[str, int] = defaultdict(int)
    roots: dict[str, set[str]] = defaultdict(set)
    groups_of: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        sizes[row.group] += 1
        roots[row.group].add(row.root)
        groups_of[row.root].add(row.group)
    groups, held, used, count = sorted(sizes.keys() - set(ALWAYS_TRAINED)), set(), set(), 0
    rng.shuffle(groups)
    for group in groups:
        if count >= HELD_OUT_SHARE * len(rows):
            break
        limited = roots[group] - {""}
        if limited & used or any(len(groups_of[root]) == 1 for root in limited):
            continue
        held.add(group)
        used |= limited
        count += sizes[group]
    return held


def _after_talk(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """Some rows again, after a round of small talk of the same side."""
    talk = [row for row in rows if row.kind == "chat_zh" and not row.history]
    for row in rows:
        if row.kind in AFTER_TALK_KINDS and not row.history and rng.random() < AFTER_TALK_SHARE:
            before = rng.choice(talk)
            yield replace(row, history=((before.prompt, before.response),))


def _numbers() -> dict[str, list[Entry]]:
    """The slots of the sums, the comparisons, the counting and the order numbers."""
    digits = range(1, 10)
    sums = [(a, b, a + b) for a in digits for b in digits]
    differences = [(a, b, a - b) for a in digits for b in digits if b <= a]
    pairs = [(a, b, max(a, b)) for a in digits for b in digits if a != b]
    counts = [(a, b) for a in range(1, 7) for b in range(a + 2, 11)]
    return {
        "加": [_in_words(sum_) for sum_ in sums],
        "减": [_in_words(difference) for difference in differences],
        "比": [tuple(map(str, pair)) for pair in pairs],
        "列": [(_word(a), _word(b), "、".join(map(_word, range(a, b + 1)))) for a, b in counts],
        "数": [(str(1000 + 7 * n % 9000),) for n in range(1, 1201)],
    }


def _in_words(numbers: tuple[int, ...]) -> Entry:
    counted = ("两" if number == 2 else _word(number) for number in numbers)
    return (*map(str, numbers), *map(_word, numbers), *counted)


def _word(number: int) -> str:
    return DIGITS[number] if number <= 10 else "十" + DIGITS[number - 10]


def count_kinds(rows: Iterable[Row]) -> Mapping[str, int]:
    """How many rows of each kind."""
    counts = dict.fromkeys(KINDS, 0)
    for row in rows:
        counts[row.kind] += 1
    return counts


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="Write the text that glm-tiny is trained on.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.folder, args.seed)


if __name__ == "__main__":
    main()
