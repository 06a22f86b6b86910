"""Read a run's folder: recipe, environment, metrics, samples, scores. No model is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.files import WEIGHT_SUFFIXES, given_path, read_json, read_json_if_there
from glmtune.recipe import Method, Recipe, load_recipe
from glmtune.reports.curves import Curve, candidates, finite, lowest, read_curve, read_seconds
from glmtune.run_files import (
    ENVIRONMENT_FILE,
    FORGETTING_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    RESULT_FILE,
    SAMPLES_FILE,
    SCORES_FILE,
    SETTINGS_FILE,
    find_checkpoint,
    follow,
    last_checkpoint,
    read_json_lines,
    step_of,
)
from glmtune.tensor_file import read_shapes

MEAN_STEPS = 10
"""Steps that a reported training loss is the mean of: the loss of a single batch says little."""
TURN_SCORE = "rouge-l"
"""The score that is shown turn by turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """An evaluation of a run: its rows, and the scores of the official ChatGLM-6B script."""

    data: str
    """Name of the evaluated file."""
    data_sha256: str
    num_rows: int
    max_new_tokens: int
    checkpoint: str
    """Name of the evaluated checkpoint's folder."""
    values: dict[str, float]
    """ROUGE-1, -2, -L and BLEU-4, 0 to 100."""
    turns: dict[int, dict[str, float]]
    """The same of the answers to each turn, with its `num_rows`; empty if the rows are all of one."""

    @property
    def key(self) -> tuple[str, int, int]:
        """Rows and length of answers; scores with equal keys can be compared."""
        return self.data_sha256, self.num_rows, self.max_new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """The contents of a run's folder."""

    path: Path
    recipe: Recipe
    environment: Mapping[str, Any]
    """Contents of env.json."""
    result: Mapping[str, Any]
    """Contents of eval.json; empty before the run ends."""
    metrics: list[dict[str, Any]]
    """Lines of metrics.jsonl."""
    samples: list[dict[str, Any]]
    """Lines of samples.jsonl: answers to the fixed prompts."""
    training: Curve
    """Training losses by step."""
    evaluation: Curve
    """Evaluation losses by step, nan included."""
    seconds: Curve
    """Training time in seconds up to each step."""
    is_finished: bool
    """True if the run reached its last step or ran out of patience."""

    @property
    def base(self) -> str:
        """Name of the base model, also for a run that went on from an earlier run."""
        return str((self.environment.get("model") or {}).get("name") or self.recipe.model)

    @property
    def num_steps(self) -> int:
        """The last training step made."""
        return max(self.training, default=0)

    @property
    def evaluated(self) -> Curve:
        """Finite evaluation losses after step 0, which is the untrained model."""
        return {step: loss for step, loss in finite(self.evaluation).items() if step > 0}

    @property
    def candidates(self) -> Curve:
        """Evaluation losses that the best checkpoint is chosen by."""
        return candidates(self.metrics)

    @property
    def best_step(self) -> int | None:
        """The step of the link `best`, else of eval.json, else of the lowest evaluation loss."""
        # the link names its step even if the checkpoint is gone
        for step in (step_of(follow(self.path / "best")), self.result.get("best_step")):
            if step in self.evaluated:
                return step
        return lowest(self.candidates or self.evaluated)

    @property
    def samples_step(self) -> int | None:
        """The step of the sample answers to show: the best checkpoint's, else the newest."""
        steps = {line["step"] for line in self.samples}
        return self.best_step if self.best_step in steps else max(steps, default=None)

    @property
    def checkpoint(self) -> Path | None:
        """Folder of the best checkpoint, or of the last if there is no best. Raises `CheckpointError`."""
        return find_checkpoint(self.path, "best") or last_checkpoint(self.path)

    def loss_at(self, step: int) -> float | None:
        """Return the mean training loss of the `MEAN_STEPS` steps up to a step; None if there is none."""
        losses = [loss for at, loss in finite(self.training).items() if step - MEAN_STEPS < at <= step]
        return sum(losses) / len(losses) if losses else None

    def tokens_per_s(self) -> float | None:
        """Return the tokens through the model per second of training; None if no line tells."""
        rates, seconds = (read_curve(self.metrics, key) for key in ("tokens_per_s", "step_s"))
        total = sum(seconds.values())
        # a mean of rates would count short steps too much: weight each with its time
        return sum(rate * seconds.get(step, 0.0) for step, rate in rates.items()) / total if total else None

    def peak_memory_gib(self) -> float | None:
        """Return the highest memory of any step in GiB; None if no line tells."""
        return max(read_curve(self.metrics, "peak_memory_gib").values(), default=None)

    def size_bytes(self) -> int | None:
        """Return the size of the weights in `checkpoint`, an adapter or a whole model; None for none."""
        sizes = [file.stat().st_size for file in _weight_files(self.checkpoint)]
        return sum(sizes) if sizes else None

    def trainable_parameters(self) -> int | None:
        """Return the number in env.json, or else the number stored in `checkpoint`; None if unknown."""
        known = self.environment.get("trainable_parameters")
        if known is not None:
            return int(known)
        files = _weight_files(self.checkpoint)
        if not files or any(file.suffix != ".safetensors" for file in files):
            return None  # only the headers of safetensors tell the shapes without reading the weights
        return sum(prod(shape) for file in files for shape in read_shapes(file).values())


def read_run(path: str | Path) -> RecordedRun:
    """Read a run's files. Raises `ConfigError` for a folder that is no run, `CheckpointError` if broken."""
    folder = given_path(path)
    if not (folder / RECIPE_FILE).is_file():
        problem = f"no run: it has no {RECIPE_FILE}" if folder.is_dir() else "a file, not the folder of a run"
        problem = problem if folder.exists() else "no such folder"
        raise ConfigError(f"{folder}: {problem}", hint="give the folders of runs: runs/...")
    try:
        recipe = load_recipe(folder / RECIPE_FILE)
    except ConfigError as err:
        raise ConfigError(f"{folder / RECIPE_FILE}: {err}", hint=err.hint) from err
    metrics = read_json_lines(folder / METRICS_FILE)
    training = read_curve(metrics, "loss")
    result = read_json_if_there(folder / RESULT_FILE, is_ours=True)
    return RecordedRun(
        path=folder,
        recipe=recipe,
        environment=read_json_if_there(folder / ENVIRONMENT_FILE, is_ours=True),
        result=result,
        metrics=metrics,
        samples=read_json_lines(folder / SAMPLES_FILE),
        training=training,
        evaluation=read_curve(metrics, "eval_loss"),
        seconds=read_seconds(metrics),
        # eval.json of a run that was resumed after its end is older than its last step
        is_finished=bool(training) and result.get("steps") == max(training),
    )


def describe_method(method: Method) -> str:
    """Return the method's name and the settings that are not its defaults: `lora`, or `lora r=4`."""
    changed = method.model_dump(mode="json", exclude_defaults=True)
    words = (
        f"{key}={'+'.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in changed.items()
    )
    return " ".join((method.name, *words))


def read_scores(run: RecordedRun) -> list[Scores]:
    """Return one evaluation for each set of rows: the best checkpoint's, else the newest checkpoint's."""
    files = sorted((run.path / "evaluations").glob(f"*/{SCORES_FILE}"))
    best = run.checkpoint.name if run.checkpoint else None
    evaluations = []
    for file in files:
        scores, settings = (read_json(path, is_ours=True) for path in (file, file.parent / SETTINGS_FILE))
        evaluations.append(
            Scores(
                data=Path(settings["data"]).name,
                data_sha256=settings["data_sha256"],
                num_rows=scores["num_rows"],
                max_new_tokens=settings["max_new_tokens"],
                checkpoint=Path(settings["model"]).name,
                values=_thudm(scores),
                turns={
                    of["turn"]: {"num_rows": of["num_rows"], **_thudm(of)} for of in scores.get("turns") or ()
                },
            )
        )
    # of evaluations with equal keys the last in this order stays
    evaluations.sort(key=lambda scores: (scores.checkpoint == best, scores.checkpoint))
    return list({scores.key: scores for scores in evaluations}.values())


def read_forgetting(run: RecordedRun) -> dict[str, Any]:
    """Return the report of a run's best checkpoint, else that of its end; empty without any."""
    folders = (
        [run.path / "evaluations" / f"{run.checkpoint.resolve().name}-general"] if run.checkpoint else []
    )
    for folder in (*folders, run.path):
        if found := read_json_if_there(folder / FORGETTING_FILE, is_ours=True):
            return found
    return {}


def has_one_round(run: Path) -> bool:
    """Return True for a run whose rows all have one round; False too where that was not recorded."""
    facts = read_json_if_there(run / ENVIRONMENT_FILE, is_ours=True)
    return facts.get("rows_of_several_rounds") == 0


def _thudm(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scores["thudm"].items() if name != "num_empty"}


def _weight_files(folder: Path | None) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES) if folder else []
