"""General prompts: everyday requests that no tuning is about, written for this project.

A model that was tuned and forgot nothing answers them as its base does. `replay.jsonl` is trained on beside
the user's rows, `held_out.jsonl` measures what was forgotten; no prompt of one is a wording of the other's.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CATEGORIES = (
    "small_talk",
    "knowledge",
    "reasoning",
    "writing",
    "code",
    "identity",
    "refusal",
    "multi_turn",
)
LANGUAGES = ("zh", "en")

UNRELATED = ("knowledge", "reasoning", "writing", "code")
"""Categories whose answers have no reason to say who the model is."""

ASKS_IDENTITY = re.compile(
    r"你(到底|究竟|又|现在)?是(谁|哪位|什么(人|模型|身份|东西)|哪个模型)|你叫(什么|啥)|你的(名字|作者|身份)|怎么称呼你|称呼您"
    r"|介绍(一下)?你?自己|自我介绍|谁(训练|创造|开发|研发|制造)(了|的)?你|你是(由)?谁(训练|创造|开发|研发|做)"
    r"|\bwho\s+(are|r)\s+(you|u)\b|\byour\s+name\b|\bwho\s+(made|built|trained|created|developed)\s+you\b"
    r"|\bintroduce\s+yourself\b|\bwhat\s+(should|do|can)\s+\w+\s+call\s+you\b",
    re.IGNORECASE,
)
LEAST_SHARE = 0.01
"""Share of a run's rows that ask for the identity from which the rows teach one."""


@dataclass(frozen=True, slots=True)
class GeneralPrompt:
    """A conversation's user turns; the model answers each in order."""

    name: str
    """Language, category and number: "zh-knowledge-07"."""
    category: str
    """One of `CATEGORIES`."""
    language: str
    """One of `LANGUAGES`."""
    turns: tuple[str, ...]
    """The user's turns: one, or several of the category `multi_turn`."""


@cache
def replay_prompts() -> tuple[GeneralPrompt, ...]:
    """Return the prompts to train on, in an order whose every prefix mixes categories and languages."""
    return _read("replay.jsonl")


@cache
def held_out_prompts() -> tuple[GeneralPrompt, ...]:
    """Return the prompts to measure with, none of them trained on; ordered as `replay_prompts`."""
    return _read("held_out.jsonl")


def teaches_identity(questions: Iterable[str]) -> bool:
    """Return True if the questions of a run's rows ask who the model is: its own answer is not to be kept.

    Such a run leaves the category `identity` out of its replay and of the verdict on what was forgotten.
    """
    asked = [bool(ASKS_IDENTITY.search(question)) for question in questions]
    return any(asked) and sum(asked) >= LEAST_SHARE * len(asked)


def _read(file: str) -> tuple[GeneralPrompt, ...]:
    """Read the prompts of a file, which stand by category, and deal them out: one of each, then the next."""
    text = Path(__file__).with_name(file).read_text(encoding="utf-8")
    cells: dict[tuple[str, str], list[GeneralPrompt]] = defaultdict(list)
    for row in map(json.loads, text.splitlines()):
        language, category, _ = row["name"].split("-")
        cells[language, category].append(GeneralPrompt(row["name"], category, language, tuple(row["turns"])))
    # the language changes at each prompt, and a category's from round to round
    order = {
        (language, category): (i + j) % len(LANGUAGES) * len(CATEGORIES) + i
        for i, category in enumerate(CATEGORIES)
        for j, language in enumerate(LANGUAGES)
    }
    places = {
        prompt: ((place + 0.5) / len(cell), order[key])
        for key, cell in cells.items()
        for place, prompt in enumerate(cell)
    }
    return tuple(sorted(places, key=lambda prompt: places[prompt]))
