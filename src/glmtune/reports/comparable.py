"""Find the reasons why figures of several runs cannot be compared."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from glmtune.files import read_json_if_there
from glmtune.reports.recorded_run import RecordedRun
from glmtune.run_files import DATA_FILE

ROW_SETTINGS = {
    "train", "validation", "test", "max_rows", "max_validation_rows", "max_test_rows", "holdout_rows",
    "split_seed",
}  # fmt: skip
"""Settings of `data` that select rows, and so do not count as encoding."""
CUT_SETTINGS = {"max_tokens", "max_source_tokens", "max_target_tokens", "overlong"}
"""Settings of `data` that say how a row is cut: they make no difference to rows that fit."""
SHORT_HASH = 8
"""Digits of a hash in a report."""


def explain_evaluation_differences(runs: Sequence[RecordedRun]) -> Iterator[str]:
    """Yield the reasons why the runs' evaluation losses cannot be compared, a sentence each."""
    left_out = ROW_SETTINGS | CUT_SETTINGS if all(map(_is_uncut, runs)) else ROW_SETTINGS
    differences = differing_names([_evaluation_inputs(run, left_out) for run in runs])
    if differences:
        yield (
            "the evaluation losses cannot be compared: the evaluated rows, or how they are read, differ in "
            + ", ".join(differences)
        )
    models = {run.base for run in runs}
    if len(models) > 1:
        yield (
            f"different base models ({', '.join(sorted(models))}): their losses per token can be compared "
            "only if their tokenizers are the same"
        )


def explain_training_differences(runs: Sequence[RecordedRun]) -> Iterator[str]:
    """Yield the reason, if any, why the runs' training losses cannot be compared."""
    if len({run.environment.get("train_sha256") for run in runs}) > 1:
        yield "the training losses are of different rows (data.train): they cannot be compared"


def explain_device_differences(runs: Sequence[RecordedRun]) -> Iterator[str]:
    """Yield the reason, if any, why the runs' speed and memory cannot be compared."""
    devices = {str(run.environment.get("device", "unknown")) for run in runs}
    if len(devices) > 1:
        yield f"trained on different devices ({', '.join(sorted(devices))}): speed and memory are theirs too"


def describe_training_rows(run: RecordedRun) -> str:
    """Return the files of the training rows, each with the beginning of its hash."""
    sources, hashes = run.recipe.data.sources, (run.environment.get("train_sha256") or "").split()
    # an old run recorded no hashes: its files stand alone
    pairs = zip_longest([source.path for source in sources], hashes[: len(sources)])
    return ", ".join(_file(path, digest) for path, digest in pairs) or _file(None, None)


def describe_evaluation_rows(run: RecordedRun) -> str:
    """Return the file of the evaluation loss, or the files that its rows were held out of."""
    data = run.recipe.data
    if data.validation:
        return _file(data.validation, run.environment.get("validation_sha256"))
    return f"held out of {describe_training_rows(run)}"


def differing_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names whose values differ; a name that one of the settings lacks differs too."""
    names = dict.fromkeys(name for one in settings for name in one)
    # `...` stands for a missing name: None may be a value
    return [
        name for name in names if any(one.get(name, ...) != settings[0].get(name, ...) for one in settings)
    ]


def _file(path: Path | None, digest: str | None) -> str:
    name = path.name if path else "?"
    return f"{name} ({digest[:SHORT_HASH]})" if digest else name


def _is_uncut(run: RecordedRun) -> bool:
    """Return whether all evaluated rows were within the limits, as data.json says."""
    rows = read_json_if_there(run.path / DATA_FILE, is_ours=True).get("validation")
    return rows is not None and not rows["rows_cut"] and not rows["drops"]


def _evaluation_inputs(run: RecordedRun, left_out: set[str]) -> dict[str, Any]:
    """Return everything that an evaluation loss depends on besides the model and the settings left out."""
    data, hashes = run.recipe.data, run.environment
    if data.validation:
        rows: dict[str, Any] = {"data.validation": hashes.get("validation_sha256")}
    else:
        parts = [{"max_rows": source.max_rows, **source.reading} for source in data.sources]
        rows = {"data.train": (hashes.get("train_sha256"), parts), "data.holdout_rows": data.holdout_rows}
        rows["data.split_seed"] = data.split_seed
    rows["data.max_validation_rows"] = data.max_validation_rows
    encoding = data.model_dump(mode="json", exclude=left_out)
    return rows | {"template": run.recipe.template} | {f"data.{key}": encoding[key] for key in encoding}
