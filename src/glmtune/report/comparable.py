"""What keeps the figures of several runs from measuring the same."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from glmtune.report.recorded_run import RecordedRun

ROWS_ELSEWHERE = {
    "train", "validation", "test", "max_rows", "max_validation_rows", "max_test_rows", "holdout_rows",
    "split_seed",
}  # fmt: skip
"""Settings of the rows that do not say how one is encoded."""
SHORT_HASH = 8
"""Digits of a hash that tell two files apart for a reader."""


def why_incomparable(runs: Sequence[RecordedRun]) -> Iterator[str]:
    """Why the runs' evaluation losses do not measure the same."""
    apart = differing([_evaluated_on(run) for run in runs])
    if apart:
        yield (
            "the evaluation losses cannot be compared: the evaluated rows, or how they are read, differ in "
            + ", ".join(apart)
        )
    models = {run.base for run in runs}
    if len(models) > 1:
        yield (
            f"different base models ({', '.join(sorted(models))}): their losses per token can be compared "
            "only if their tokenizers are the same"
        )


def other_rows(runs: Sequence[RecordedRun]) -> Iterator[str]:
    """Why the runs' training losses do not measure the same, though their evaluation losses may."""
    if len({run.environment.get("train_sha256") for run in runs}) > 1:
        yield "the training losses are of different rows (data.train): they cannot be compared"


def other_devices(runs: Sequence[RecordedRun]) -> Iterator[str]:
    """Why the runs' speed and memory do not measure the same."""
    devices = {str(run.environment.get("device", "unknown")) for run in runs}
    if len(devices) > 1:
        yield f"trained on different devices ({', '.join(sorted(devices))}): speed and memory are theirs too"


def training_rows_hash(run: RecordedRun) -> str:
    """The files of the training rows, each with the beginning of its hash."""
    sources, hashes = run.recipe.data.sources, (run.environment.get("train_sha256") or "").split()
    pairs = zip_longest([source.path for source in sources], hashes[: len(sources)])
    return ", ".join(_file(path, digest) for path, digest in pairs) or _file(None, None)


def evaluation_rows(run: RecordedRun) -> str:
    """The file that the evaluation loss is of, or the one that its rows were held out of."""
    data = run.recipe.data
    if data.validation:
        return _file(data.validation, run.environment.get("validation_sha256"))
    return f"held out of {training_rows_hash(run)}"


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names whose values are not the same in all; a name that one lacks differs."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [
        name for name in names if any(one.get(name, ...) != settings[0].get(name, ...) for one in settings)
    ]


def _file(path: Path | None, digest: str | None) -> str:
    name = path.name if path else "?"
    return f"{name} ({digest[:SHORT_HASH]})" if digest else name


def _evaluated_on(run: RecordedRun) -> dict[str, Any]:
    """All that an evaluation loss depends on besides the model."""
    data, hashes = run.recipe.data, run.environment
    if data.validation:
        rows: dict[str, Any] = {"data.validation": hashes.get("validation_sha256")}
    else:
        parts = [{"max_rows": source.max_rows, **source.reading} for source in data.sources]
        rows = {"data.train": (hashes.get("train_sha256"), parts), "data.holdout_rows": data.holdout_rows}
        rows["data.split_seed"] = data.split_seed
    rows["data.max_validation_rows"] = data.max_validation_rows
    encoding = data.model_dump(mode="json", exclude=ROWS_ELSEWHERE)
    return rows | {"template": run.recipe.template} | {f"data.{key}": encoding[key] for key in encoding}
