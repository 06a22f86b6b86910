"""Answers to the rows of a test file, each written as it finishes, so that an evaluation can be continued."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glmtune.conversation import answer_text
from glmtune.errors import ConfigError
from glmtune.evaluation.metrics import score_variants
from glmtune.files import read_json
from glmtune.generate import Sampling, decode
from glmtune.models.protocol import CausalLM
from glmtune.run_files import (
    SETTINGS_FILE,
    append_json,
    make_folder,
    read_json_lines,
    require_new,
    write_json,
    write_text,
)
from glmtune.tokenizers.protocol import Tokenizer

PREDICTIONS_FILE = "generated_predictions.txt"
PART_SUFFIX = ".part"
"""End of the names of the files that other processes than the first write."""


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """A row of the test data: a prompt to answer, and the reference."""

    index: int
    """Index among the rows to answer, from 0; `Prediction.row` in the file."""
    prompt_ids: list[int]
    reference: str
    turn: int = 1
    """Number of the user's message that is answered, 1 for the first of a conversation."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A line of generated_predictions.txt; `labels` and `predict` are the official script's names."""

    row: int
    labels: str
    predict: str
    stopped: bool
    """True if the answer ended with a stop token, not at `max_new_tokens`."""


def predict(
    model: CausalLM,
    tokenizer: Tokenizer,
    rows: Sequence[EvaluationRow],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[Prediction]:
    """Answer rows greedily, `batch_size` at a time; yield each answer as it finishes.

    A thought in front of an answer is left out.
    """
    stop_ids = frozenset(tokenizer.stop_ids)
    sampling = Sampling(do_sample=False, max_new_tokens=max_new_tokens)
    # by length: rows of a batch cost as much as the longest of them
    ordered = sorted(rows, key=lambda row: len(row.prompt_ids))
    prompts = [row.prompt_ids for row in ordered]
    answers: list[list[int]] = [[] for _ in ordered]
    for pairs in decode(model, prompts, sampling, stop_ids=stop_ids, max_rows=batch_size):
        for i, token in pairs:
            if token not in stop_ids:
                answers[i].append(token)
            if token in stop_ids or len(answers[i]) == max_new_tokens:
                text = answer_text(tokenizer, answers[i])
                yield Prediction(ordered[i].index, ordered[i].reference, text, token in stop_ids)


class PredictionPart:
    """The answers that another process than the first writes, in a file of their own in the same folder."""

    def __init__(self, folder: Path, rank: int, settings: Mapping[str, Any]) -> None:
        """`settings`: those of the first process's `PredictionFile`."""
        self.path, self.settings = folder / f"{PREDICTIONS_FILE}.{rank}{PART_SUFFIX}", dict(settings)

    def record(self, key: str, value: object) -> None:
        """Keep a value that the first process writes down."""
        self.settings[key] = value

    def count_parts(self) -> int:
        """Return 0: other processes' answers are the first one's to count."""
        return 0

    def add(self, prediction: Prediction) -> None:
        """Append one finished row."""
        append_json(self.path, asdict(prediction))


class PredictionFile:
    """The generated_predictions.txt of one folder, and the settings that its answers belong to."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin the file. Raises `ConfigError` if it belongs to other settings."""
        self.path = folder / PREDICTIONS_FILE
        self._settings_path = folder / SETTINGS_FILE
        if self._settings_path.exists():
            before = read_json(self._settings_path, is_ours=True)
            changed = [key for key in settings if before.get(key) != settings[key]]
            if changed:
                key = changed[0]
                raise ConfigError(
                    f"{folder}: holds predictions of other settings "
                    f"({key} was {before.get(key)!r}, now {settings[key]!r})",
                    hint="name another folder: output=...",
                )
        else:
            require_new(folder, hint="name another: output=...")
            make_folder(folder)
            write_json(self._settings_path, dict(settings))
        self.settings: dict[str, Any] = read_json(self._settings_path, is_ours=True)
        self.done = {line["row"]: Prediction(**line) for line in read_json_lines(self.path)}
        self.take_parts()  # writes anew: a killed evaluation may have left half a line at the end

    def count_parts(self) -> int:
        """Return the number of answers in the files of other processes."""
        return sum(len(read_json_lines(path)) for path in self._parts())

    def take_parts(self) -> None:
        """Move the answers of other processes into this file, also those of an evaluation that was killed."""
        parts = list(self._parts())
        for path in parts:
            self.done |= {line["row"]: Prediction(**line) for line in read_json_lines(path)}
        self._write_all()
        for path in parts:
            path.unlink()

    def _parts(self) -> Iterator[Path]:
        return self.path.parent.glob(f"{self.path.name}.*{PART_SUFFIX}")

    def record(self, key: str, value: object) -> None:
        """Add to the settings a value that is known only later; a continued evaluation finds it there."""
        self.settings[key] = value
        write_json(self._settings_path, self.settings)

    def add(self, prediction: Prediction) -> None:
        """Append one finished row."""
        append_json(self.path, asdict(prediction))
        self.done[prediction.row] = prediction

    def finish(self) -> list[Prediction]:
        """Sort the rows of the file into the order of the data; return them."""
        self._write_all()
        return [self.done[row] for row in sorted(self.done)]

    def _write_all(self) -> None:
        lines = (json.dumps(asdict(self.done[row]), ensure_ascii=False) for row in sorted(self.done))
        write_text(self.path, "".join(line + "\n" for line in lines))


def score_all(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return both variants' scores, `num_rows`, `num_empty`, and the share that ended with a stop token."""
    answers = [p.predict for p in predictions]
    references = [p.labels for p in predictions]
    scores: dict[str, Any] = {**score_variants(answers, references)}
    scores["num_rows"] = len(predictions)
    scores["num_empty"] = sum(not text.strip() for text in answers)
    scores["stopped_share"] = sum(p.stopped for p in predictions) / len(predictions)
    return scores


def score_turns(predictions: Sequence[Prediction], turns: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return `score_all` of the answers to each turn, with its `turn`; empty if all are of one turn.

    `turns` are the turns of the rows, by `Prediction.row`.
    """
    by_turn: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        by_turn.setdefault(turns[prediction.row], []).append(prediction)
    if len(by_turn) < 2:
        return []
    return [{"turn": turn, **score_all(by_turn[turn])} for turn in sorted(by_turn)]
