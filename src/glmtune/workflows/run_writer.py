"""The files of a training run: who writes what, and what a resumed run takes back."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from glmtune.errors import CheckpointError, OutputError
from glmtune.extras import require
from glmtune.log import tell
from glmtune.recipe import Recipe, to_yaml
from glmtune.report.fonts import GET_A_FONT, find_families
from glmtune.report.plots import plot_loss
from glmtune.report.rank_map import plot_ranks
from glmtune.report.recorded_run import describe_method
from glmtune.run_files import (
    ENVIRONMENT_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    SAMPLES_FILE,
    append_json,
    cannot_write,
    link,
    list_checkpoints,
    make_folder,
    read_json_lines,
    remove_folder,
    remove_partials,
    replacing,
    step_of,
    write_json,
    write_text,
)
from glmtune.workflows.resuming import with_full_paths

PACKAGES = ("glmtune", "torch", "transformers", "peft", "accelerate", "sentencepiece", "tiktoken")


class RunWriter:
    """Writes a run's recipe.yaml, env.json, lines of JSON, pictures and the links to checkpoints."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self.folder = folder
        self.metrics_path = folder / METRICS_FILE
        self._samples_path = folder / SAMPLES_FILE
        self._ranks_path = folder / "ranks.jsonl"
        self._wants_board = tensorboard
        self._board: Any = None
        self._subtitle = ""
        if tensorboard:
            require("tensorboard", extra="tensorboard")

    def begin(self, recipe: Recipe, facts: Mapping[str, Any], *, is_new: bool) -> None:
        """Open the run's folder; a new one gets the resolved recipe and the environment.

        Running that recipe again is the run again.
        """
        make_folder(self.folder)
        self.sweep()
        base = Path((facts.get("model") or {}).get("name") or recipe.model).name
        self._subtitle = f"{base}, {describe_method(recipe.method)}, learning rate {recipe.train.lr:g}"
        if find_families([name := self.folder.resolve().name]) is None:
            tell(f"warning: no font here can write {name}, the title of the run's pictures; {GET_A_FONT}")
        if is_new:
            self._describe(recipe, facts)
        if self._wants_board:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"))

    def sweep(self) -> None:
        """Delete what a killed process has left half-written or half-deleted."""
        for folder in (self.folder, self.folder / "checkpoints"):
            remove_partials(folder)

    def _describe(self, recipe: Recipe, facts: Mapping[str, Any]) -> None:
        write_text(self.folder / RECIPE_FILE, to_yaml(with_full_paths(recipe)))
        environment = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "packages": {name: version(name) for name in PACKAGES},
            **facts,
        }
        write_json(self.folder / ENVIRONMENT_FILE, environment)

    def add(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl: a step or an evaluation."""
        append_json(self.metrics_path, line)
        if self._board is not None:
            self._draw_on_board(line)

    def _draw_on_board(self, line: Mapping[str, Any]) -> None:
        try:
            for name in line.keys() & {"loss", "eval_loss", "lr", "grad_norm", "tokens_per_s"}:
                self._board.add_scalar(name, line[name], line["step"])
            self._board.flush()
        except OSError as err:
            raise cannot_write(self.folder / "tensorboard", err) from err

    def add_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """The fixed prompts and their answers at a step."""
        for prompt, answer in samples:
            append_json(self._samples_path, {"step": step, "prompt": prompt, "answer": answer})

    def add_ranks(self, step: int, ranks: Mapping[str, int]) -> None:
        """The rank of each target from a step on, by the layer's name."""
        append_json(self._ranks_path, {"step": step, "ranks": ranks})

    def draw(self, step: int) -> None:
        """Draw loss.png anew, and ranks.png where there are ranks, as of a step."""
        name = self.folder.resolve().name
        metrics, picture = read_json_lines(self.metrics_path), self.folder / "loss.png"
        plot_loss(metrics, picture, title=name, subtitle=self._subtitle)
        if ranks := read_json_lines(self._ranks_path):
            plot_ranks(ranks, step, self.folder / "ranks.png", title=name)

    def checkpoint_path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def link_checkpoint(self, step: int, *, best_step: int | None) -> None:
        """Point `best` and `last` at their steps' checkpoints.

        What is opened is right between the two as well: the new `best`, or, where there was none, `last`.
        """
        links = {"best": best_step, "last": step}
        for name in ("best", "last") if (self.folder / "best").exists() else ("last", "best"):
            if (its_step := links[name]) is not None:
                link(self.folder / name, self.checkpoint_path(its_step))

    def prune(self, keep: int, *, best_step: int | None) -> None:
        """Delete all checkpoints but the newest `keep` and the best."""
        for path in list_checkpoints(self.folder)[:-keep]:
            if step_of(path) == best_step:
                continue
            try:
                remove_folder(path)
            except OutputError as err:  # no reason to end a training; what is left is swept away on resuming
                tell(f"warning: {err}")

    def go_back(self, step: int, *, keep: int, best_step: int | None) -> None:
        """Have the run's files as they were at a checkpoint that it goes on from.

        A process that was killed behind it leaves lines, checkpoints and links of later steps, and files half
        written. Raises `CheckpointError` if the best checkpoint so far is gone.
        """
        best = None if best_step is None else self.checkpoint_path(best_step)
        if best and not best.exists():
            raise CheckpointError(
                f"{best}: missing, though it is the best so far",
                hint="put it back from a copy, or train anew, with another folder: output=FOLDER",
            )
        self._forget_after(step)  # first: a line that cannot be read is told before anything is deleted
        self.link_checkpoint(step, best_step=best_step)
        if best is None:
            (self.folder / "best").unlink(missing_ok=True)
        for path in list_checkpoints(self.folder):
            if (step_of(path) or 0) > step:
                remove_folder(path)
        self.prune(keep, best_step=best_step)

    def _forget_after(self, step: int) -> None:
        written = (self.metrics_path, self._samples_path, self._ranks_path)
        for path in (path for path in written if path.exists()):
            lines = [line for line in read_json_lines(path) if line["step"] <= step]
            with replacing(path) as partial:
                partial.touch()
                for line in lines:
                    append_json(partial, line)
