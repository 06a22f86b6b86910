"""List the runs in a folder with their figures and states; no model is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from glmtune.errors import CheckpointError, ConfigError, GlmtuneError
from glmtune.files import given_path, unreadable
from glmtune.reports.recorded_run import Scores, describe_method, read_run, read_scores
from glmtune.run_files import METRICS_FILE, RECIPE_FILE, REPORT_FILE, find_checkpoint
from glmtune.run_process import LIVE, State, recorded_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A run of the list."""

    path: Path
    state: State
    """`finished`: reached its last step or ran out of patience; `broken`: its files cannot be read."""
    changed: datetime
    """Time of the last change of its recipe or metrics."""
    problem: str = ""
    """The reason why it is broken; empty if it is not."""
    base: str = ""
    """Name of the base model."""
    method: str = ""
    """The method's name with the settings that are not its defaults."""
    quant: str | None = None
    steps: int = 0
    best_eval_loss: float | None = None
    best_step: int | None = None
    size_bytes: int | None = None
    peak_memory_gib: float | None = None
    report: Path | None = None
    """Its report.html, if it has one."""
    scores: tuple[Scores, ...] = field(default=())


def summarise_runs(folder: str | Path = "runs") -> list[Entry]:
    """List every run in a folder and below it, the newest first. Raises `ConfigError` if it is no folder."""
    runs_folder = given_path(folder)
    if not runs_folder.is_dir():
        raise ConfigError(f"{runs_folder}: no such folder", hint="give the folder that runs lie in: runs")
    entries = [_entry(file.parent) for file in _find_recipes(runs_folder)]
    return sorted(entries, key=lambda entry: (entry.changed, entry.path), reverse=True)


def _find_recipes(folder: Path) -> Iterator[Path]:
    """Yield the recipe files of all runs in a folder and below it; a run contains no other run."""
    try:
        is_run = (folder / RECIPE_FILE).is_file()
        # no links: `last` and `best` lead to checkpoints, and a link upwards would never end
        folders = sorted(path for path in folder.iterdir() if not path.is_symlink() and path.is_dir())
    except OSError as err:
        raise unreadable(folder, err, ConfigError, hint="name the folder that your runs lie in") from None
    if is_run:
        yield folder / RECIPE_FILE
        return
    for inner in folders:
        yield from _find_recipes(inner)


def _entry(folder: Path) -> Entry:
    files = [file for name in (RECIPE_FILE, METRICS_FILE) if (file := folder / name).exists()]
    changed = datetime.fromtimestamp(max(file.stat().st_mtime for file in files))
    try:
        run = read_run(folder)
        scores = tuple(read_scores(run))
        recorded = recorded_state(folder)
    except GlmtuneError as err:
        return Entry(path=folder, state="broken", changed=changed, problem=str(err))
    problem = ""
    try:  # a link may lead to a checkpoint that is gone
        for name in ("best", "last"):
            find_checkpoint(folder, name)
    except CheckpointError as err:
        problem = str(err)
    # whether it is finished its figures say: their last step may be of a later process than the record
    ended: State = "stopped" if recorded in (None, "finished") else recorded
    ended = "finished" if run.is_finished else ended
    state: State = "broken" if problem else recorded if recorded in LIVE else ended
    return Entry(
        path=folder,
        state=state,
        changed=changed,
        problem=problem,
        base=Path(run.base).name or run.base,
        method=describe_method(run.recipe.method),
        quant=run.recipe.quant,
        steps=run.num_steps,
        best_eval_loss=run.evaluated[run.best_step] if run.best_step is not None else None,
        best_step=run.best_step,
        size_bytes=None if problem else run.size_bytes(),
        peak_memory_gib=run.peak_memory_gib(),
        report=page if (page := folder / REPORT_FILE).is_file() else None,
        scores=scores,
    )
