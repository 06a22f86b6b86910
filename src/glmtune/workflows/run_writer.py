"""The writer of a training run's files, which also takes them back to a checkpoint when a run is resumed."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from glmtune.errors import CheckpointError, OutputError
from glmtune.files import read_json_if_there
from glmtune.log import tell
from glmtune.recipe import Recipe, to_yaml
from glmtune.reports.fonts import GET_A_FONT, find_families
from glmtune.reports.memory_picture import plot_memory
from glmtune.reports.plots import plot_loss
from glmtune.reports.rank_map import plot_ranks
from glmtune.reports.recorded_run import describe_method
from glmtune.run_files import (
    DATA_FILE,
    ENVIRONMENT_FILE,
    MEMORY_FILE,
    METRICS_FILE,
    RANKS_FILE,
    RECIPE_FILE,
    SAMPLES_FILE,
    append_json,
    link,
    list_checkpoints,
    make_folder,
    read_json_lines,
    remove_folder,
    remove_partials,
    replacing,
    step_of,
    steps_to_keep,
    sync,
    write_json,
    write_text,
)
from glmtune.run_process import Recording, own_command
from glmtune.workflows.copies import CopyFolder
from glmtune.workflows.resuming import with_full_paths
from glmtune.workflows.rows import EncodedRows
from glmtune.workflows.trackers import Trackers

PACKAGES = ("glmtune", "torch", "transformers", "peft", "accelerate", "sentencepiece", "tiktoken")


class RunWriter:
    """Writes a run's recipe.yaml, env.json, lines of JSON, pictures, and links to its checkpoints."""

    def __init__(self, folder: Path, *, report_to: Sequence[str] = ()) -> None:
        self.folder = folder
        self.metrics_path = folder / METRICS_FILE
        self._samples_path = folder / SAMPLES_FILE
        self._ranks_path = folder / RANKS_FILE
        self._trackers = Trackers(report_to)
        self._subtitle = ""
        self._record: Recording | None = None

    def begin(
        self, recipe: Recipe, facts: Mapping[str, Any], *, is_new: bool, is_changed: bool = False
    ) -> None:
        """Create or reopen the run's folder; a new one gets recipe.yaml and env.json (`facts` included).

        recipe.yaml is complete: running it again repeats the run. `is_changed`: some of its settings are
        others from here on. Raises `OutputError`, also if `train.copy_to` takes no files.
        """
        if recipe.train.copy_to:
            CopyFolder(recipe.train.copy_to).require_writable()
        make_folder(self.folder)
        self.sweep()
        base = Path((facts.get("model") or {}).get("name") or recipe.model).name
        self._subtitle = f"{base}, {describe_method(recipe.method)}, learning rate {recipe.train.lr:g}"
        # now, not with the first picture: that is drawn after the first evaluation, which may take long
        if find_families([name := self.folder.resolve().name]) is None:
            tell(f"warning: no font here can write {name}, the title of the run's pictures; {GET_A_FONT}")
        if is_new or is_changed:
            text = to_yaml(with_full_paths(recipe))
            write_text(self.folder / RECIPE_FILE, text, is_durable=True)
        if is_new:
            environment = {
                "python": platform.python_version(),
                "platform": platform.platform(),
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                "packages": {name: version(name) for name in PACKAGES},
                **({"command": command} if (command := own_command()) else {}),
                **facts,
            }
            write_json(self.folder / ENVIRONMENT_FILE, environment, is_durable=True)
        with suppress(OSError):  # a parent that may not be read cannot be synced
            sync(self.folder.parent, is_deep=False)
        self._trackers.begin(self.folder, recipe.model_dump(mode="json"))

    @contextmanager
    def recorded(self, steps: int) -> Iterator[None]:
        """Inside, process.json names this process as the one that trains; after it, how that ended."""
        self._record = record = Recording(self.folder, steps=steps)
        try:
            yield
        except BaseException as error:  # whatever it is, the record says it
            record.end(error)
            raise
        record.end(None)

    def sweep(self) -> None:
        """Delete files and folders that a killed process left half-written or half-deleted."""
        for folder in (self.folder, self.folder / "checkpoints"):
            remove_partials(folder)

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a step or an evaluation to metrics.jsonl, and hand it to the programs of `report_to`."""
        append_json(self.metrics_path, line)
        if self._record and "loss" in line:
            self._record.step()
        self._trackers.add(line)

    def close(self) -> None:
        """Let the programs of `report_to` finish."""
        self._trackers.close()

    def sync_lines(self) -> None:
        """Have the system write all lines so far to the disk. Raises OSError."""
        for path in filter(Path.exists, (self.metrics_path, self._samples_path, self._ranks_path)):
            sync(path)

    def add_samples(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append the answers to the sample questions at a step to samples.jsonl."""
        for line in lines:
            append_json(self._samples_path, {"step": step, **line})

    def add_ranks(self, step: int, ranks: Mapping[str, int]) -> None:
        """Append AdaLoRA's ranks from a step on, by the layer's name, to ranks.jsonl."""
        append_json(self._ranks_path, {"step": step, "ranks": ranks})

    def write_lengths(self, rows: EncodedRows) -> None:
        """Write data.json: how long the rows are, and how many of them were cut or left out."""
        parts = {"train": rows.train, "validation": rows.validation}
        write_json(self.folder / DATA_FILE, {name: part.report.facts() for name, part in parts.items()})

    def write_memory(self, content: Mapping[str, Any]) -> None:
        """Write memory.json: what the run has taken so far, and was expected to."""
        write_json(self.folder / MEMORY_FILE, content)

    def draw(self, step: int) -> None:
        """Draw loss.png, memory.png, and ranks.png if there are ranks, with the figures up to a step."""
        name = self.folder.resolve().name
        metrics, picture = read_json_lines(self.metrics_path), self.folder / "loss.png"
        plot_loss(metrics, picture, title=name, subtitle=self._subtitle)
        if memory := read_json_if_there(self.folder / MEMORY_FILE, is_ours=True):
            plot_memory(memory, metrics, self.folder / "memory.png", title=name, subtitle=self._subtitle)
        if ranks := read_json_lines(self._ranks_path):
            plot_ranks(ranks, step, self.folder / "ranks.png", title=name)

    def checkpoint_path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def link_checkpoint(self, step: int, *, best_step: int | None) -> None:
        """Point `best` and `last` at their steps' checkpoints.

        A run is opened by its `best`, or by `last` if there is none. The order of the two writes makes the
        right one open even if the process is killed between them.
        """
        links = {"best": best_step, "last": step}
        for name in ("best", "last") if (self.folder / "best").exists() else ("last", "best"):
            if (target := links[name]) is not None:
                link(self.folder / name, self.checkpoint_path(target))

    def prune(self, keep: int, *, best_step: int | None) -> None:
        """Delete all checkpoints but the newest `keep`, the best, and the best that each of those knew."""
        found = list_checkpoints(self.folder)
        kept = {best_step, *steps_to_keep(self.folder, [step_of(path) or 0 for path in found[-keep:]])}
        for path in (path for path in found if step_of(path) not in kept):
            try:
                remove_folder(path)
            except OutputError as err:  # no reason to end a training; `sweep` deletes the rest on resuming
                tell(f"warning: {err}")

    def go_back(self, step: int, *, keep: int, best_step: int | None) -> None:
        """Take the run's files back to a step: no lines, checkpoints or links of later steps remain.

        A run that was killed between two checkpoints leaves such files behind. Raises `CheckpointError` if
        the best checkpoint is missing.
        """
        best = None if best_step is None else self.checkpoint_path(best_step)
        if best and not best.exists():
            raise CheckpointError(
                f"{best}: missing, though it is the best so far",
                hint="put it back from a copy, or train anew, with another folder: output=FOLDER",
            )
        # lines first: a damaged line is an error before any checkpoint is deleted
        for path in (self.metrics_path, self._samples_path, self._ranks_path):
            if not path.exists():
                continue
            lines = [line for line in read_json_lines(path) if line["step"] <= step]
            with replacing(path, is_durable=True) as partial:
                partial.touch()
                for line in lines:
                    append_json(partial, line)
        self.link_checkpoint(step, best_step=best_step)
        if best is None:
            (self.folder / "best").unlink(missing_ok=True)
        for path in list_checkpoints(self.folder):
            if (step_of(path) or 0) > step:
                remove_folder(path)
        self.prune(keep, best_step=best_step)
