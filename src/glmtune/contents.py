"""Rules for the values that glmtune reads from a run's own files, by the file's name."""

from collections.abc import Callable, Mapping
from typing import Any

from glmtune.rules import SWITCH, Rule, is_texts
from glmtune.values import shown

LARGEST = 2**53
"""The largest integer up to which a float holds every integer exactly."""


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_number(value: object) -> bool:
    # nan and inf are numbers here: a diverged run writes them into its metrics.jsonl
    return type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def _object_of(is_value: Callable[[Any], bool]) -> Callable[[object], bool]:
    """Make the test for an object with at least one key whose values all pass `is_value`."""
    return lambda value: isinstance(value, dict) and bool(value) and all(map(is_value, value.values()))


def _is_list_of(value: object, is_value: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_value, value))


def _is_lengths(value: object) -> bool:
    """Return True for what `LengthReport.facts` makes, as far as code reads it."""
    if not isinstance(value, dict) or not isinstance(bars := value.get("histogram"), dict):
        return False
    counts, most = bars.get("counts"), value.get("most_tokens")
    numbers = (bars.get("longer"), value.get("rows"), value.get("rows_cut"), value.get("tokens_lost"))
    objects = ("cuts", "drops", "tokens")
    return (
        all(map(_is_count, numbers))
        and isinstance(counts, list)
        and all(map(_is_count, counts))
        and _is_count(bars.get("width"))
        and bars["width"] > 0
        and (most is None or _is_count(most))
        and all(isinstance(value.get(name), dict) for name in objects)
        and all(_is_count(count) for name in objects for count in value[name].values())
        and isinstance(value.get("limit"), str)
    )


COUNT = Rule("a whole number from 0", _is_count)
NUMBER = Rule("a number", _is_number)
SECONDS = Rule("a number from 0", lambda value: _is_number(value) and 0 <= value <= LARGEST)
TEXT = Rule("text", lambda value: isinstance(value, str))
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
IDS = Rule("a list of token ids", lambda value: _is_list_of(value, _is_count))
TEXTS = Rule("a list of texts", lambda value: _is_list_of(value, TEXT.is_met))
COUNTS = Rule("an object of whole numbers from 0", _object_of(_is_count))
NUMBERS = Rule("an object of numbers", _object_of(_is_number))
COUNTS_BY_NAME = Rule("an object of such objects of whole numbers", _object_of(COUNTS.is_met))
LENGTHS = Rule("an object of the lengths of rows", _is_lengths)
OBJECTS = Rule("a list of objects", lambda value: isinstance(value, list) and all(map(OBJECT.is_met, value)))
TURNS = Rule(
    "a list of objects with 'turn', 'num_rows' and 'thudm' scores",
    lambda value: (
        OBJECTS.is_met(value)
        and all(COUNTS.is_met({key: of.get(key) for key in ("turn", "num_rows")}) for of in value)
        and all(NUMBERS.is_met(of.get("thudm")) for of in value)
    ),
)


def _with(**rules: Rule) -> Rule:
    """Return the rule for an object with such values."""

    def is_met(value: object) -> bool:
        return isinstance(value, dict) and all(rule.allows(value.get(key)) for key, rule in rules.items())

    return Rule(f"an object with {', '.join(rules)}", is_met)


def _each(rule: Rule, words: str) -> Rule:
    """Return the rule for a list or an object of such values."""

    def is_met(value: object) -> bool:
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [None]
        return all(map(rule.is_met, values))

    return Rule(words, is_met)


INTERVAL, PAIR = _with(mean=NUMBER, low=NUMBER, high=NUMBER), _with(base=NUMBER, tuned=NUMBER)
NAMES = Rule("a list of texts", is_texts)
GROUPS = _each(_with(kl=NUMBER, answers=COUNT), "an object of groups, each with 'kl' and 'answers'")
ANSWERS = _each(
    _with(question=TEXT, base=TEXT, tuned=TEXT, kl=NUMBER),
    "a list of objects with 'question', 'base', 'tuned' and 'kl'",
)

# A key under or_null() may also be absent: find_fault looks it up with dict.get.
CONTENTS: Mapping[str, Mapping[str, Rule]] = {
    "metrics.jsonl": {
        "step": COUNT,
        "loss": NUMBER.or_null(),
        "eval_loss": NUMBER.or_null(),
        "is_settled": SWITCH.or_null(),
        "general_kl": NUMBER.or_null(),
        "step_s": SECONDS.or_null(),
        "tokens_per_s": NUMBER.or_null(),
        "peak_memory_gib": NUMBER.or_null(),
        "memory_gib": NUMBER.or_null(),
    },
    "samples.jsonl": {
        "step": COUNT,
        "prompt": TEXT,
        "answer": TEXT,
        "turns": TEXTS.or_null(),
        "seed": COUNT.or_null(),
        "seconds": SECONDS.or_null(),
        "is_right": SWITCH.or_null(),
    },
    "replay.jsonl": {
        **dict.fromkeys(("name", "category", "language", "answer"), TEXT),
        "turns": TEXTS,
        "turn": COUNT,
        "is_ended": SWITCH,
        "prompt_ids": IDS,
        "answer_ids": IDS,
    },
    "ranks.jsonl": {"step": COUNT, "ranks": COUNTS},
    "generated_predictions.txt": {"row": COUNT, "labels": TEXT, "predict": TEXT, "stopped": SWITCH},
    "env.json": {
        "model": OBJECT.or_null(),
        "device": TEXT.or_null(),
        "command": TEXT.or_null(),
        "train_sha256": TEXT.or_null(),
        "validation_sha256": TEXT.or_null(),
        "replay_sha256": TEXT.or_null(),
        "trainable_parameters": COUNT.or_null(),
        "all_parameters": COUNT.or_null(),
        "general_prompts": COUNT.or_null(),
        "rows_of_several_rounds": COUNT.or_null(),
    },
    "forgetting.json": {
        "verdict": TEXT,
        "reason": TEXT,
        "step": COUNT.or_null(),
        "kl": INTERVAL,
        "thresholds": _with(drifted=NUMBER, forgot=NUMBER),
        "prompts": COUNT,
        "left_out": TEXT.or_null(),
        "loss": PAIR,
        "task": _with(
            kl=INTERVAL, rows=COUNT, loss=_with(base=NUMBER, tuned=NUMBER, change=INTERVAL).or_null()
        ).or_null(),
        "training_perplexity_of_base": NUMBER.or_null(),
        "changed_share": NUMBER,
        "leaked": _with(base=COUNT, tuned=COUNT),
        "identity": _with(names=NAMES, hits=COUNT, asked=COUNT, leaks=COUNT, unrelated=COUNT).or_null(),
        "ended_share": PAIR,
        "repeated_share": PAIR,
        "by": _with(category=GROUPS, language=GROUPS, turn=GROUPS),
        "compared": ANSWERS,
    },
    "data.json": {"train": LENGTHS, "validation": LENGTHS.or_null()},
    "memory.json": {
        "device": TEXT,
        "limit": COUNT,
        "predicted": COUNTS.or_null(),
        "measured": COUNTS,
        "phases": COUNTS_BY_NAME,
    },
    "eval.json": {"steps": COUNT, "best_step": COUNT.or_null()},
    "process.json": {
        "pid": COUNT,
        **dict.fromkeys(("birth", "host", "began", "phase", "command", "message", "hint"), TEXT),
        **dict.fromkeys(("is_program", "is_stop_asked"), SWITCH),
        "steps": COUNT.or_null(),
        "end": TEXT.or_null(),
    },
    "trainer_state.json": {"log_history": OBJECTS.or_null(), "global_step": COUNT.or_null()},
    "scores.json": {"thudm": NUMBERS, "num_rows": COUNT, "turns": TURNS.or_null()},
    "settings.json": {
        "model": TEXT,
        "data": TEXT,
        "data_sha256": TEXT,
        "max_new_tokens": COUNT,
        "computed_with": TEXT.or_null(),
        "peak_memory_gib": NUMBER.or_null(),
    },
}
"""The keys that code reads of a run's, an evaluation's and the HF Trainer's files; other keys are free."""

CLOSED = {"generated_predictions.txt"}
"""Files that are rewritten from the values read: an unknown key would be lost, so it is a fault."""


def find_fault(name: str, content: Mapping[str, Any]) -> str | None:
    """Return a sentence on the first value that breaks its rule in a file, or in one line of a JSONL file."""
    rules = CONTENTS.get(name, {})
    for key, rule in rules.items():
        if not rule.allows(content.get(key)):
            problem = f"got {shown(content[key])}" if key in content else "it is missing"
            return f"{key!r} must be {rule.words}, {problem}"
    unknown = [key for key in content if name in CLOSED and key not in rules]
    return f"{unknown[0]!r} is no key of such a line: {', '.join(rules)}" if unknown else None
