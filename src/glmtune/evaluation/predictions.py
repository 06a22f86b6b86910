"""Answers to the rows of a file, each written when it is finished, so that a second run goes on."""

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


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One row to answer."""

    row: int
    prompt_ids: list[int]
    reference: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of generated_predictions.txt; `labels` and `predict` are the official script's names."""

    row: int
    labels: str
    predict: str
    stopped: bool
    """Ended by a stop token, not by the length limit."""


def predict(
    model: CausalLM,
    tokenizer: Tokenizer,
    questions: Sequence[EvaluationRow],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[Prediction]:
    """Answer greedily, so many rows at a time, the next as soon as one ends; yield each as it finishes.

    A thought in front of an answer is left out.
    """
    stop_ids = frozenset(tokenizer.stop_ids)
    sampling = Sampling(do_sample=False, max_new_tokens=max_new_tokens)
    ordered = sorted(questions, key=lambda question: len(question.prompt_ids))
    prompts = [question.prompt_ids for question in ordered]
    answers: list[list[int]] = [[] for _ in ordered]
    for pairs in decode(model, prompts, sampling, stop_ids=stop_ids, max_rows=batch_size):
        for i, token in pairs:
            if token not in stop_ids:
                answers[i].append(token)
            if token in stop_ids or len(answers[i]) == max_new_tokens:
                text = answer_text(tokenizer, answers[i])
                yield Prediction(ordered[i].row, ordered[i].reference, text, token in stop_ids)


class PredictionFile:
    """generated_predictions.txt of one folder, and the settings it belongs to."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin the file. Raises `ConfigError` if it belongs to other settings."""
        self.path = folder / PREDICTIONS_FILE
        self._known = folder / SETTINGS_FILE
        if self._known.exists():
            _require_same(folder, self._known, settings)
        else:
            require_new(folder, hint="name another: output=...")
            make_folder(folder)
            write_json(self._known, dict(settings))
        self.settings: dict[str, Any] = read_json(self._known, is_ours=True)
        self.done = {line["row"]: Prediction(**line) for line in read_json_lines(self.path)}
        self._write_all()  # drops the half line of a run that was killed

    def record(self, key: str, value: Any) -> None:
        """Keep beside the settings what is known only later; a second run finds it in `settings`."""
        self.settings[key] = value
        write_json(self._known, self.settings)

    def add(self, prediction: Prediction) -> None:
        """Append one finished row."""
        append_json(self.path, asdict(prediction))
        self.done[prediction.row] = prediction

    def finish(self) -> list[Prediction]:
        """Put the rows into the order of the data; return them."""
        self._write_all()
        return [self.done[row] for row in sorted(self.done)]

    def _write_all(self) -> None:
        lines = (json.dumps(asdict(self.done[row]), ensure_ascii=False) for row in sorted(self.done))
        write_text(self.path, "".join(line + "\n" for line in lines))


def score_all(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Both variants of the scores, and how the answers ended."""
    answers = [p.predict for p in predictions]
    references = [p.labels for p in predictions]
    scores: dict[str, Any] = {**score_variants(answers, references)}
    scores["num_rows"] = len(predictions)
    scores["num_empty"] = sum(not text.strip() for text in answers)
    scores["stopped_share"] = sum(p.stopped for p in predictions) / len(predictions)
    return scores


def _require_same(folder: Path, known: Path, settings: Mapping[str, Any]) -> None:
    before = read_json(known, is_ours=True)
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{folder}: holds predictions of other settings "
            f"({key} was {before.get(key)!r}, now {settings[key]!r})",
            hint="name another folder: output=...",
        )
