"""What the files of a run tell. No model is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.files import WEIGHT_SUFFIXES, given_path, read_json, read_json_if_there
from glmtune.recipe import Method, Recipe, load_recipe
from glmtune.report.curves import Curve, candidates, finite, lowest, read_curve, read_seconds
from glmtune.run_files import (
    ENVIRONMENT_FILE,
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
"""A training loss at a step is the mean over so many steps up to it: one batch's alone says little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One evaluation of a run: what was answered, and the official ChatGLM-6B script's scores."""

    data: str
    """Name of the file."""
    data_sha256: str
    num_rows: int
    max_new_tokens: int
    checkpoint: str
    values: dict[str, float]
    """ROUGE-1, -2, -L and BLEU-4, 0 to 100."""

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes scores comparable: the rows and the longest answer."""
        return self.data_sha256, self.num_rows, self.max_new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A run's folder, read."""

    path: Path
    recipe: Recipe
    environment: Mapping[str, Any]
    """What env.json holds."""
    result: Mapping[str, Any]
    """What eval.json holds; nothing before the end."""
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    training: Curve
    evaluation: Curve
    seconds: Curve
    """Training time up to each step."""
    is_finished: bool

    @property
    def base(self) -> str:
        """Its base model's name, also where it went on from an earlier run."""
        return str((self.environment.get("model") or {}).get("name") or self.recipe.model)

    @property
    def num_steps(self) -> int:
        """The last step that was made."""
        return max(self.training, default=0)

    @property
    def evaluated(self) -> Curve:
        """Evaluation losses after training steps: step 0 is the model as it was."""
        return {step: loss for step, loss in finite(self.evaluation).items() if step > 0}

    @property
    def candidates(self) -> Curve:
        """Evaluation losses of what the run may deliver."""
        return candidates(self.metrics)

    @property
    def best_step(self) -> int | None:
        """The step of the link `best`, else that of eval.json, else the candidate of the lowest loss."""
        for step in (_step_of(self.path / "best"), self.result.get("best_step")):
            if step in self.evaluated:
                return step
        return lowest(self.candidates or self.evaluated)

    @property
    def checkpoint(self) -> Path | None:
        """The best checkpoint's folder; before there is one, the last one's. Raises `CheckpointError`."""
        return find_checkpoint(self.path, "best") or last_checkpoint(self.path)

    def loss_at(self, step: int) -> float | None:
        """Mean training loss of the `MEAN_STEPS` steps up to a step."""
        losses = [loss for at, loss in finite(self.training).items() if step - MEAN_STEPS < at <= step]
        return sum(losses) / len(losses) if losses else None

    def tokens_per_s(self) -> float | None:
        """Tokens through the model per second of training."""
        rates, seconds = (read_curve(self.metrics, key) for key in ("tokens_per_s", "step_s"))
        total = sum(seconds.values())
        return sum(rate * seconds.get(step, 0.0) for step, rate in rates.items()) / total if total else None

    def peak_memory_gib(self) -> float | None:
        """The highest memory of any step."""
        return max(read_curve(self.metrics, "peak_memory_gib").values(), default=None)

    def size_bytes(self) -> int | None:
        """Size of the checkpoint's weights: an adapter's, or the whole model's where that was saved."""
        sizes = [file.stat().st_size for file in _weight_files(self.checkpoint)]
        return sum(sizes) if sizes else None

    def trainable_parameters(self) -> int | None:
        """As env.json says; where it does not, as many as the checkpoint holds."""
        known = self.environment.get("trainable_parameters")
        return int(known) if known is not None else _count_stored(self.checkpoint)


def read_run(path: str | Path) -> RecordedRun:
    """Read a run's files. Raises `ConfigError` for a folder that is no run, `CheckpointError` if broken."""
    folder = given_path(path)
    if not (folder / RECIPE_FILE).is_file():
        raise ConfigError(f"{folder}: {_what_it_is(folder)}", hint="give the folders of runs: runs/...")
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
        is_finished=bool(training) and result.get("steps") == max(training),
    )


def describe_method(method: Method) -> str:
    """`lora`, or `lora r=4`: the method's name and the settings that are not its defaults."""
    changed = method.model_dump(mode="json", exclude_defaults=True)
    words = (
        f"{key}={'+'.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in changed.items()
    )
    return " ".join((method.name, *words))


def read_scores(run: RecordedRun) -> list[Scores]:
    """The run's evaluations, of each set of rows that of the best checkpoint, else of the newest."""
    files = sorted((run.path / "evaluations").glob(f"*/{SCORES_FILE}"))
    best = run.checkpoint.name if run.checkpoint else None
    found = sorted((_scores(file) for file in files), key=lambda s: (s.checkpoint == best, s.checkpoint))
    return list({scores.key: scores for scores in found}.values())


def _scores(file: Path) -> Scores:
    scores, settings = (read_json(path, is_ours=True) for path in (file, file.parent / SETTINGS_FILE))
    values = {name: value for name, value in scores["thudm"].items() if name != "num_empty"}
    return Scores(
        data=Path(settings["data"]).name,
        data_sha256=settings["data_sha256"],
        num_rows=scores["num_rows"],
        max_new_tokens=settings["max_new_tokens"],
        checkpoint=Path(settings["model"]).name,
        values=values,
    )


def _step_of(link: Path) -> int | None:
    """The step of the checkpoint that a link points at, whether or not that is still there."""
    return step_of(follow(link))


def _what_it_is(folder: Path) -> str:
    if not folder.exists():
        return "no such folder"
    return f"no run: it has no {RECIPE_FILE}" if folder.is_dir() else "a file, not the folder of a run"


def _weight_files(folder: Path | None) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES) if folder else []


def _count_stored(folder: Path | None) -> int | None:
    """Numbers in the safetensors files of a folder, from their headers; None where there are others."""
    files = _weight_files(folder)
    if not files or any(file.suffix != ".safetensors" for file in files):
        return None
    return sum(prod(shape) for file in files for shape in read_shapes(file).values())
