"""Runs side by side, from their files alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.files import given_path
from glmtune.report.comparable import (
    differing,
    evaluation_rows,
    other_devices,
    other_rows,
    training_rows_hash,
    why_incomparable,
)
from glmtune.report.curves import Curve
from glmtune.report.fonts import GET_A_FONT, find_families
from glmtune.report.plots import Curves, plot_comparison
from glmtune.report.recorded_run import RecordedRun, Scores, describe_method, read_run, read_scores
from glmtune.run_files import make_folder, require_new, write_json

PICTURE_FILE = "compare.png"
FIGURES_FILE = "compare.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One run in numbers; None is what its files do not tell."""

    name: str
    """The folder's name, with as much of its path as tells it from the others."""
    path: str
    method: str
    trained_on: str
    """The file of the training rows and the beginning of its hash."""
    evaluated_on: str
    """The same of the rows that the evaluation loss is of."""
    device: str | None
    trainable_parameters: int | None
    all_parameters: int | None
    steps: int
    is_finished: bool
    train_s: float
    """Sum of the steps' times, over all resumes; evaluating and saving are not in it."""
    steps_per_s: float | None
    tokens_per_s: float | None
    peak_memory_gib: float | None
    best_eval_loss: float | None
    best_step: int | None
    size_bytes: int | None
    losses: dict[int, float | None]
    """Training loss at the compared steps, each the mean of up to 10 steps that end there."""
    eval_losses: dict[int, float]
    """Evaluation loss at the compared steps."""
    samples_step: int | None
    """The step of the answers to the fixed prompts: the best's, else the newest there are."""
    scores: tuple[Scores, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A fixed prompt and each run's answer at its `samples_step`, None of a run that was not asked."""

    prompt: str
    answers: tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """When the run with the lowest evaluation loss had reached another run's best."""

    run: str
    other: str
    loss: float
    """The other's best evaluation loss."""
    step: int
    other_step: int
    seconds: float
    other_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `glmtune compare` shows."""

    runs: tuple[RunFigures, ...]
    differences: dict[str, tuple[Any, ...]]
    """Settings that all runs have and that differ, with each run's value; the method's name is in `runs`."""
    samples: tuple[Sample, ...]
    leads: tuple[Lead, ...]
    """Empty where the evaluation losses cannot be compared."""
    warnings: tuple[str, ...]
    caveats: tuple[str, ...]
    """Those of the warnings that say why curves cannot be compared; the picture has them too."""
    folder: Path | None = None
    """Where compare.json and compare.png are, if they were written."""


def compare_runs(
    runs: Sequence[str | Path], *, output: str | Path | None = None, at: Sequence[int] = ()
) -> Comparison:
    """Compare two or more run folders; with `output`, a new folder, write compare.json and compare.png there.

    `at` names steps to compare the training losses at; without it, the largest that all runs have made.
    Raises `ConfigError` for a folder that is no run, for fewer than two runs, and for a step not made.
    """
    read = _read_all(runs)
    names = _names(read)
    comparison = _compare(read, names, tuple(at) or _largest_shared([run.training for run in read]))
    if output is None:
        return comparison
    folder = given_path(output)
    require_new(folder, hint="name another: output=FOLDER")
    make_folder(folder)
    drawn = names
    if find_families(names) is None:
        drawn = [f"run {number}" for number, _ in enumerate(names, 1)]
        listed = ", ".join(f"{number} is {name}" for number, name in zip(drawn, names, strict=True))
        text = f"no font here can write all names of the runs: in the picture {listed}; {GET_A_FONT}"
        comparison = replace(comparison, warnings=(*comparison.warnings, text))
    curves = [_curves(*pair) for pair in zip(drawn, read, strict=True)]
    plot_comparison(curves, folder / PICTURE_FILE, caveats=comparison.caveats)
    comparison = replace(comparison, folder=folder)
    write_json(folder / FIGURES_FILE, asdict(comparison) | {"folder": str(folder)})
    return comparison


def _read_all(paths: Sequence[str | Path]) -> list[RecordedRun]:
    runs = [read_run(path) for path in paths]
    folders = [run.path.resolve() for run in runs]
    twice = next((path for i, path in enumerate(folders) if path in folders[:i]), None)
    if twice:
        raise ConfigError(f"{twice}: named twice", hint="name each run once")
    if len(runs) < 2:
        raise ConfigError(
            f"{len(runs)} run{'' if runs else 's'} named: there is nothing to compare",
            hint="name two or more",
        )
    return runs


def _names(runs: Sequence[RecordedRun]) -> list[str]:
    """The last parts of each path, as few as tell the runs apart."""
    parts = [run.path.resolve().parts for run in runs]
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def _compare(runs: Sequence[RecordedRun], names: Sequence[str], at: tuple[int, ...]) -> Comparison:
    for step in at:
        _require_step(step, runs, names)
    shared = tuple(step for step in at if all(step in run.evaluated for run in runs))
    eval_at = shared or _largest_shared([run.evaluated for run in runs])
    incomparable = tuple(why_incomparable(runs))
    caveats = (*incomparable, *other_rows(runs))
    unready = (text for pair in zip(runs, names, strict=True) for text in _what_is_missing(*pair))
    return Comparison(
        runs=tuple(_figures(run, name, at, eval_at) for run, name in zip(runs, names, strict=True)),
        differences=_differences([run.recipe.model_dump(mode="json", exclude={"output"}) for run in runs]),
        samples=tuple(_samples(runs)),
        leads=() if incomparable else tuple(_leads(runs, names)),
        warnings=(*unready, *caveats, *other_devices(runs)),
        caveats=caveats,
    )


def _require_step(step: int, runs: Sequence[RecordedRun], names: Sequence[str]) -> None:
    for run, name in zip(runs, names, strict=True):
        if step not in run.training:
            largest = _largest_shared([run.training for run in runs])
            raise ConfigError(
                f"--at {step}: {name} has no step {step}, its last is {run.num_steps}",
                hint=f"the largest that all runs have: at={largest[0]}" if largest else "leave at out",
            )


def _largest_shared(curves: Sequence[Curve]) -> tuple[int, ...]:
    """The largest step of all curves; nothing if there is none."""
    shared = set(curves[0]).intersection(*curves[1:])
    return (max(shared),) if shared else ()


def _figures(run: RecordedRun, name: str, at: Sequence[int], eval_at: Sequence[int]) -> RunFigures:
    train_s, best = run.seconds[max(run.seconds)], run.best_step
    return RunFigures(
        name=name,
        path=str(run.path.resolve()),
        method=describe_method(run.recipe.method),
        trained_on=training_rows_hash(run),
        evaluated_on=evaluation_rows(run),
        device=run.environment.get("device"),
        trainable_parameters=run.trainable_parameters(),
        all_parameters=run.environment.get("all_parameters"),
        steps=run.num_steps,
        is_finished=run.is_finished,
        train_s=train_s,
        steps_per_s=len(run.training) / train_s if train_s else None,
        tokens_per_s=run.tokens_per_s(),
        peak_memory_gib=run.peak_memory_gib(),
        best_eval_loss=None if best is None else run.evaluated[best],
        best_step=best,
        size_bytes=run.size_bytes(),
        losses={step: run.loss_at(step) for step in at},
        eval_losses={step: run.evaluated[step] for step in eval_at},
        samples_step=_samples_step(run),
        scores=tuple(read_scores(run)),
    )


def _what_is_missing(run: RecordedRun, name: str) -> Iterator[str]:
    if not run.training:
        yield f"{name}: no step yet"
        return
    if not run.is_finished:
        yield f"{name}: at step {run.num_steps}, still running or interrupted"
    if not run.evaluated:
        yield f"{name}: not evaluated yet"


def _differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    flat = [dict(_flatten(recipe)) for recipe in recipes]
    names = [name for name in differing(flat) if all(name in one for one in flat) and name != "method.name"]
    return {name: tuple(one[name] for one in flat) for name in names}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _samples(runs: Sequence[RecordedRun]) -> Iterator[Sample]:
    """The prompts that two runs or more have answered, in the order of the files."""
    answered = [_answers(run) for run in runs]
    for prompt in dict.fromkeys(prompt for answers in answered for prompt in answers):
        found = tuple(answers.get(prompt) for answers in answered)
        if sum(answer is not None for answer in found) > 1:
            yield Sample(prompt=prompt, answers=found)


def _answers(run: RecordedRun) -> dict[str, str]:
    step = _samples_step(run)
    return {line["prompt"]: line["answer"] for line in run.samples if line["step"] == step}


def _samples_step(run: RecordedRun) -> int | None:
    steps = {line["step"] for line in run.samples}
    return run.best_step if run.best_step in steps else max(steps, default=None)


def _leads(runs: Sequence[RecordedRun], names: Sequence[str]) -> Iterator[Lead]:
    """The run with the lowest evaluation loss against each of the others."""
    bests = {
        name: (run, step)
        for run, name in zip(runs, names, strict=True)
        if (step := run.best_step) is not None
    }
    first = min(bests, key=lambda name: bests[name][0].evaluated[bests[name][1]], default=None)
    for name, (run, step) in bests.items():
        if name != first and first is not None:
            yield _lead(first, bests[first][0], name, run, step)


def _lead(name: str, run: RecordedRun, other_name: str, other: RecordedRun, other_step: int) -> Lead:
    loss = other.evaluated[other_step]
    reached = (step for step, at in run.candidates.items() if at <= loss)
    step = next(reached, run.best_step)
    assert step is not None
    return Lead(
        run=name,
        other=other_name,
        loss=loss,
        step=step,
        other_step=other_step,
        seconds=run.seconds[step],
        other_seconds=other.seconds[other_step],
    )


def _curves(name: str, run: RecordedRun) -> Curves:
    label = f"{name} ({run.recipe.method.name})"
    return Curves(
        label=label,
        training=run.training,
        evaluation=run.evaluation,
        seconds=run.seconds,
        best=run.best_step,
    )
