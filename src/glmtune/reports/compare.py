"""Compare runs from their files alone; no model is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.files import given_path
from glmtune.reports.comparable import (
    describe_evaluation_rows,
    describe_training_rows,
    differing_names,
    explain_device_differences,
    explain_evaluation_differences,
    explain_training_differences,
)
from glmtune.reports.curves import Curve
from glmtune.reports.fonts import GET_A_FONT, find_families
from glmtune.reports.plots import Curves, plot_comparison
from glmtune.reports.recorded_run import (
    TURN_SCORE,
    RecordedRun,
    Scores,
    describe_method,
    read_forgetting,
    read_run,
    read_scores,
)
from glmtune.run_files import make_folder, require_new, write_json

PICTURE_FILE = "compare.png"
FIGURES_FILE = "compare.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """Figures of one run; None for a figure that its files do not tell."""

    name: str
    """The run folder's name, with as much of its path as makes it unique."""
    path: str
    method: str
    """The method's name with the settings that are not its defaults."""
    trained_on: str
    """The file of the training rows, with the beginning of its hash."""
    evaluated_on: str
    """The file of the evaluated rows, with the beginning of its hash."""
    device: str | None
    trainable_parameters: int | None
    all_parameters: int | None
    steps: int
    is_finished: bool
    train_s: float
    """Sum of the steps' times in seconds, over all resumes, without evaluation and saving."""
    steps_per_s: float | None
    tokens_per_s: float | None
    peak_memory_gib: float | None
    best_eval_loss: float | None
    best_step: int | None
    verdict: str | None
    """Verdict on what it has kept of its base: `kept`, `drifted` or `forgot`."""
    general_kl: float | None
    """Its divergence from the base on general prompts, in nats a token."""
    size_bytes: int | None
    """Size of the weights of the best checkpoint."""
    losses: dict[int, float | None]
    """Training losses at the compared steps, each the mean of up to 10 steps that end there."""
    eval_losses: dict[int, float]
    """Evaluation losses at the compared steps."""
    samples_step: int | None
    """The step of the sample answers: the best checkpoint's, else the newest."""
    scores: tuple[Scores, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A fixed prompt and each run's answer at its `samples_step`; None for a run without that prompt."""

    prompt: str
    answers: tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """The point where the run with the lowest evaluation loss reached another run's best."""

    run: str
    """Name of the run with the lowest evaluation loss."""
    other: str
    """Name of the other run."""
    loss: float
    """The other run's best evaluation loss."""
    step: int
    """The step at which `run` was at or below `loss`."""
    other_step: int
    """The step of the other run's best."""
    seconds: float
    """Training time of `run` up to `step`."""
    other_seconds: float
    """Training time of the other run up to `other_step`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The comparison that `glmtune compare` shows."""

    runs: tuple[RunFigures, ...]
    differences: dict[str, tuple[Any, ...]]
    """Settings that all runs have and that differ, with each run's value; without the method's name."""
    samples: tuple[Sample, ...]
    leads: tuple[Lead, ...]
    """Empty if the evaluation losses cannot be compared."""
    warnings: tuple[str, ...]
    caveats: tuple[str, ...]
    """The warnings that say why curves cannot be compared; the picture shows them too."""
    folder: Path | None = None
    """The folder of compare.json and compare.png, if they were written."""


def compare_runs(
    runs: Sequence[str | Path], *, output: str | Path | None = None, at: Sequence[int] = ()
) -> Comparison:
    """Compare two or more run folders; `output` is a new folder for compare.json and compare.png.

    `at` are the steps to compare losses at; by default the largest that all runs have made.
    Raises `ConfigError` for a folder that is no run, for fewer than two runs, and for a step not made.
    """
    recorded = _read_all(runs)
    # a run's name is the last parts of its path, as few as tell all runs apart
    parts, length = [run.path.resolve().parts for run in recorded], 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    names = ["/".join(path[-length:]) for path in parts]
    comparison = _compare(recorded, names, tuple(at) or _largest_shared([run.training for run in recorded]))
    if output is None:
        return comparison
    folder = given_path(output)
    require_new(folder, hint="name another: output=FOLDER")
    make_folder(folder)
    labels = names
    if find_families(names) is None:
        labels = [f"run {number}" for number, _ in enumerate(names, 1)]
        listed = ", ".join(f"{number} is {name}" for number, name in zip(labels, names, strict=True))
        text = f"no font here can write all names of the runs: in the picture {listed}; {GET_A_FONT}"
        comparison = replace(comparison, warnings=(*comparison.warnings, text))
    turn_score, by_turn = _scores_by_turn([figures.scores for figures in comparison.runs])
    curves = [
        Curves(
            label=f"{label} ({run.recipe.method.name})",
            training=run.training,
            evaluation=run.evaluation,
            seconds=run.seconds,
            best=run.best_step,
            turns=turns,
        )
        for label, run, turns in zip(labels, recorded, by_turn, strict=True)
    ]
    plot_comparison(curves, folder / PICTURE_FILE, caveats=comparison.caveats, turn_score=turn_score)
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


def _compare(runs: Sequence[RecordedRun], names: Sequence[str], at: tuple[int, ...]) -> Comparison:
    for step in at:
        lacking = next((pair for pair in zip(runs, names, strict=True) if step not in pair[0].training), None)
        if lacking:
            short_run, short_name = lacking
            largest = _largest_shared([run.training for run in runs])
            raise ConfigError(
                f"--at {step}: {short_name} has no step {step}, its last is {short_run.num_steps}",
                hint=f"the largest that all runs have: at={largest[0]}" if largest else "leave at out",
            )
    # a run is rarely evaluated at every step: fall back to the last step at which all were
    shared = tuple(step for step in at if all(step in run.evaluated for run in runs))
    eval_at = shared or _largest_shared([run.evaluated for run in runs])
    incomparable = tuple(explain_evaluation_differences(runs))
    caveats = (*incomparable, *explain_training_differences(runs))
    recipes = [dict(flatten(run.recipe.model_dump(mode="json", exclude={"output"}))) for run in runs]
    differences = [
        name
        for name in differing_names(recipes)
        if name != "method.name" and all(name in recipe for recipe in recipes)
    ]
    return Comparison(
        runs=tuple(_figures(run, name, at, eval_at) for run, name in zip(runs, names, strict=True)),
        differences={name: tuple(recipe[name] for recipe in recipes) for name in differences},
        samples=tuple(_samples(runs)),
        leads=() if incomparable else tuple(_leads(runs, names)),
        warnings=(*_unready(runs, names), *caveats, *explain_device_differences(runs)),
        caveats=caveats,
    )


def _unready(runs: Sequence[RecordedRun], names: Sequence[str]) -> Iterator[str]:
    """Yield warnings of runs that lack steps or evaluations."""
    for run, name in zip(runs, names, strict=True):
        if not run.training:
            yield f"{name}: no step yet"
            continue
        if not run.is_finished:
            yield f"{name}: at step {run.num_steps}, still running or interrupted"
        if not run.evaluated:
            yield f"{name}: not evaluated yet"


def _largest_shared(curves: Sequence[Curve]) -> tuple[int, ...]:
    """Return the largest step that all curves have, as a tuple of one; empty if there is none."""
    shared = set(curves[0]).intersection(*curves[1:])
    return (max(shared),) if shared else ()


def _figures(run: RecordedRun, name: str, at: Sequence[int], eval_at: Sequence[int]) -> RunFigures:
    train_s, best = run.seconds[max(run.seconds)], run.best_step
    forgotten = read_forgetting(run)
    return RunFigures(
        name=name,
        path=str(run.path.resolve()),
        method=describe_method(run.recipe.method),
        trained_on=describe_training_rows(run),
        evaluated_on=describe_evaluation_rows(run),
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
        verdict=forgotten.get("verdict"),
        general_kl=forgotten["kl"]["mean"] if forgotten else None,
        size_bytes=run.size_bytes(),
        losses={step: run.loss_at(step) for step in at},
        eval_losses={step: run.evaluated[step] for step in eval_at},
        samples_step=run.samples_step,
        scores=tuple(read_scores(run)),
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings under full names, as `train.lr`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _samples(runs: Sequence[RecordedRun]) -> Iterator[Sample]:
    """Yield the prompts that at least two runs have answered, in the order of the files."""
    answered = []
    for run in runs:
        own = [line for line in run.samples if not line.get("built_in")]
        lines = [line for line in own if line["step"] == run.samples_step]
        answered.append({line["prompt"]: line["answer"] for line in lines})
    for prompt in dict.fromkeys(prompt for by_prompt in answered for prompt in by_prompt):
        answers = tuple(by_prompt.get(prompt) for by_prompt in answered)
        if sum(answer is not None for answer in answers) > 1:
            yield Sample(prompt=prompt, answers=answers)


def _scores_by_turn(evaluations: Sequence[Sequence[Scores]]) -> tuple[str, list[Curve]]:
    """Return a name and each run's scores by turn, of the rows that most runs were evaluated on."""
    by_key: dict[tuple[str, int, int], dict[int, Scores]] = {}
    for number, evaluated in enumerate(evaluations):
        for scores in evaluated:
            if scores.turns:
                by_key.setdefault(scores.key, {})[number] = scores
    if not by_key:
        return "", [{} for _ in evaluations]
    found = max(by_key.values(), key=len)
    curves: list[Curve] = [{} for _ in evaluations]
    for number, scores in found.items():
        curves[number] = {turn: of[TURN_SCORE] for turn, of in scores.turns.items() if TURN_SCORE in of}
    return f"{TURN_SCORE} of {Path(next(iter(found.values())).data).stem}, 0 to 100", curves


def _leads(runs: Sequence[RecordedRun], names: Sequence[str]) -> Iterator[Lead]:
    """Compare the run with the lowest evaluation loss with each other run that has a best step."""
    bests = {
        name: (run, step)
        for run, name in zip(runs, names, strict=True)
        if (step := run.best_step) is not None
    }
    first = min(bests, key=lambda name: bests[name][0].evaluated[bests[name][1]], default=None)
    for name, (other, other_step) in bests.items():
        if name == first or first is None:
            continue
        run, best_step = bests[first]
        loss = other.evaluated[other_step]
        step = next((step for step, at in run.candidates.items() if at <= loss), best_step)
        yield Lead(
            run=first,
            other=name,
            loss=loss,
            step=step,
            other_step=other_step,
            seconds=run.seconds[step],
            other_seconds=other.seconds[other_step],
        )
