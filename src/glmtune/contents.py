"""What the files of a run must hold: each value that is read of them, by the file's name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.values import shown

LARGEST = 2**53
"""Up to here every whole number is a float."""


@dataclass(frozen=True, slots=True)
class ValueKind:
    """What a value may be, in words and as a test; an optional one may be null or absent."""

    words: str
    fits: Callable[[Any], bool]

    def or_none(self) -> "ValueKind":
        """The same, or nothing."""
        return ValueKind(f"{self.words}, or null", lambda value: value is None or self.fits(value))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def _holds(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and bool(value) and all(map(fits, value.values()))


COUNT = ValueKind("a whole number from 0", _is_count)
NUMBER = ValueKind("a number", _is_number)
SECONDS = ValueKind("a number from 0", lambda value: _is_number(value) and 0 <= value <= LARGEST)
TEXT = ValueKind("text", lambda value: isinstance(value, str))
FLAG = ValueKind("true or false", lambda value: isinstance(value, bool))
OBJECT = ValueKind("an object", lambda value: isinstance(value, dict))
COUNTS = ValueKind("an object of whole numbers from 0", _holds(_is_count))
NUMBERS = ValueKind("an object of numbers", _holds(_is_number))
OBJECTS = ValueKind(
    "a list of objects", lambda value: isinstance(value, list) and all(map(OBJECT.fits, value))
)

CONTENTS: Mapping[str, Mapping[str, ValueKind]] = {
    "metrics.jsonl": {
        "step": COUNT,
        "loss": NUMBER.or_none(),
        "eval_loss": NUMBER.or_none(),
        "is_settled": FLAG.or_none(),
        "step_s": SECONDS.or_none(),
        "tokens_per_s": NUMBER.or_none(),
        "peak_memory_gib": NUMBER.or_none(),
    },
    "samples.jsonl": {"step": COUNT, "prompt": TEXT, "answer": TEXT},
    "ranks.jsonl": {"step": COUNT, "ranks": COUNTS},
    "generated_predictions.txt": {"row": COUNT, "labels": TEXT, "predict": TEXT, "stopped": FLAG},
    "env.json": {
        "model": OBJECT.or_none(),
        "device": TEXT.or_none(),
        "train_sha256": TEXT.or_none(),
        "validation_sha256": TEXT.or_none(),
        "trainable_parameters": COUNT.or_none(),
        "all_parameters": COUNT.or_none(),
    },
    "eval.json": {"steps": COUNT, "best_step": COUNT.or_none()},
    "trainer_state.json": {"log_history": OBJECTS.or_none(), "global_step": COUNT.or_none()},
    "scores.json": {"thudm": NUMBERS, "num_rows": COUNT},
    "settings.json": {
        "model": TEXT,
        "data": TEXT,
        "data_sha256": TEXT,
        "max_new_tokens": COUNT,
        "computed_with": TEXT.or_none(),
    },
}
"""Of the files of a run, of an evaluation and of the Trainer; nothing depends on the kind of other values."""

CLOSED = {"generated_predictions.txt"}
"""Written anew from what is read: a key that nobody knows would be lost."""


def find_fault(name: str, content: Mapping[str, Any]) -> str | None:
    """In words, the first value of a file, or of one of its lines, that is not what it must be."""
    kinds = CONTENTS.get(name, {})
    for key, kind in kinds.items():
        if not kind.fits(content.get(key)):
            found = f"got {shown(content[key])}" if key in content else "it is missing"
            return f"{key!r} must be {kind.words}, {found}"
    unknown = [key for key in content if name in CLOSED and key not in kinds]
    return f"{unknown[0]!r} is no key of such a line: {', '.join(kinds)}" if unknown else None
