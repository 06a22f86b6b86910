"""Save a run's checkpoints, and continue a run from its last one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from glmtune.adapters.card import CARD_FILE, Card
from glmtune.adapters.origin import check_base, require_files
from glmtune.adapters.proof import check_recorded, proof_line, recorded_difference
from glmtune.adapters.store import read_card, require_saved, restore_trained, save_trained
from glmtune.errors import CheckpointError, ConfigError, GlmtuneError, OutputError
from glmtune.files import copy_small_files, hash_file, read_json_if_there
from glmtune.load import check_outline
from glmtune.locations import resolve
from glmtune.recipe import Recipe, TrainedPart, load_recipe
from glmtune.run_files import (
    ENVIRONMENT_FILE,
    RECIPE_FILE,
    cannot_write,
    list_checkpoints,
    make_folder,
    replacing,
    set_aside,
    step_of,
    train_on_hint,
)
from glmtune.training.state import (
    STATE_FILE,
    as_state,
    collect_state,
    read_state,
    restore_state,
    tensor_bytes,
    write_state,
)
from glmtune.workflows.cards import Untrained, write_card
from glmtune.workflows.copies import RUN, CopyFolder, renew_copies
from glmtune.workflows.early import run_folder
from glmtune.workflows.events import Note, Saved
from glmtune.workflows.plan import start_processes
from glmtune.workflows.resuming import resume_command

if TYPE_CHECKING:
    from glmtune.workflows.assemble import Run


def save_checkpoint(run: "Run", *, is_best: bool) -> Saved:
    """Save weights, card and training state (optimizer, schedule, random numbers).

    All processes must call it, for each has random numbers of its own.
    """
    plan, step = run.plan, run.progress.step
    path = run.writer.checkpoint_path(step)
    if run.is_main:
        make_folder(path.parent)
    with run.processes.gathering_in(path.parent):
        # on every process, before the main one writes: the state gathers the random numbers of all
        state = collect_state(run.optimizer, run.schedule, run.processes)
        state["standing"] = asdict(run.progress)  # this key is in the state files of all versions
        if run.pruning:
            state["pruning"] = run.pruning.state_dict()
        with run.processes.joined():
            card = write_card(
                run.recipe,
                plan.location,
                run.base,
                plan.tokenizer,
                run.model,
                row_hashes=plan.row_hashes,
                step=step,
            )
        is_whole = run.recipe.method.kept is TrainedPart.MODEL
        with run.processes.whole():  # entered by all, before the main process writes
            if run.is_main:
                with _saying_what_is_kept(run, state), replacing(path, is_durable=True) as partial:
                    run.writer.sync_lines()  # a checkpoint never stands without the lines up to its step
                    partial.mkdir()
                    if is_whole:  # full: the checkpoint is a model folder
                        copy_small_files(plan.location.base, partial)
                    write_state(state, partial)
                    save_trained(run.model, partial, card)
                    if not list_checkpoints(run.writer.folder):
                        # a run's first checkpoint must open again: better an error now than after days
                        check_outline(resolve(partial, base=None if is_whole else plan.location.base))
                # link before pruning: `best` and `last` never point at a folder that is gone
                run.writer.link_checkpoint(step, best_step=run.progress.best_step)
                run.writer.prune(run.recipe.train.keep_checkpoints, best_step=run.progress.best_step)
    # a main process that fails above never comes here: its end breaks the wait of the others off
    run.processes.wait_for_first()
    assert card.probe is not None
    return Saved(path, is_best, recorded_difference(card.probe))


def copy_checkpoints(run: "Run", *, is_end: bool = False) -> Iterator[Note]:
    """Copy a run's checkpoints to `train.copy_to`. All processes must call it; the main one copies.

    At the end of the run its report and all other files too. A failure is a warning: the run's folder has
    all of them, and the next call copies what is lacking.
    """
    url, folder = run.recipe.train.copy_to, run.writer.folder
    if url is None:
        return
    run.processes.enter(f"copying step {run.progress.step}")
    if run.is_main:
        keep, best_step = run.recipe.train.keep_checkpoints, run.progress.best_step
        try:
            for copy in renew_copies(folder, url, keep=keep, best_step=best_step):
                yield Note(f"copied to {url}/{copy}")
            if is_end:
                names = CopyFolder(url).write_results(folder)
                yield Note(f"copied to {url}: {', '.join(names)}")
        except GlmtuneError as err:
            again = "" if is_end else ", and the next checkpoint tries again"
            yield Note(f"{err}; nothing is lost: {folder} has it{again}", is_warning=True)
    run.processes.wait_for_first()


@contextmanager
def _saying_what_is_kept(run: "Run", state: Mapping[str, Any]) -> Iterator[None]:
    """Say in the error of a full disk how much a checkpoint takes, what is kept and how to go on."""
    try:
        yield
    except OutputError as err:
        folder, cause = run.writer.folder, err.__cause__
        kept = list_checkpoints(folder)
        if not kept or not isinstance(cause, OSError | SafetensorError):
            raise
        trained = sum(
            weight.numel() * weight.itemsize for weight in run.model.parameters() if weight.requires_grad
        )
        path = run.writer.checkpoint_path(run.progress.step)
        told = cannot_write(path, cause, num_bytes=trained + tensor_bytes(state))
        raise OutputError(
            f"{told}; {kept[-1].name} and what was before it are whole",
            hint=f"{told.hint}, then go on: {resume_command(folder)}",
        ) from cause


@dataclass(frozen=True, slots=True)
class WholeCheckpoint:
    """A checkpoint whose files are as they were saved, and newer ones that are not."""

    folder: Path
    card: Card | None
    """None if an early version saved it, without hashes of its files."""
    state: dict[str, Any]
    damaged: tuple[tuple[Path, CheckpointError], ...]
    """Newer checkpoints, each with what is wrong."""


def newest_whole(folder: Path) -> WholeCheckpoint:
    """Return the newest checkpoint of a run whose files are as they were saved.

    Every byte is read. Raises `CheckpointError` if there is none, saying what is wrong with each.
    """
    damaged: list[tuple[Path, CheckpointError]] = []
    # this key came to env.json after the cards had all hashes
    has_hashes = "types" in (read_json_if_there(folder / ENVIRONMENT_FILE, is_ours=True) or {})
    # by steps and not by `last`, which may lead to a damaged one
    for path in reversed(list_checkpoints(folder)):
        try:
            card = read_card(path)
            if card:
                require_files(path, card)
            elif has_hashes:
                raise CheckpointError(f"{path / CARD_FILE}: is missing", hint=train_on_hint(path))
            state = read_state(path, step=card.step if card else None)
            return WholeCheckpoint(path, card, state, tuple(damaged))
        except CheckpointError as err:
            damaged.append((path, err))
    if not damaged:
        raise CheckpointError(f"{folder}: no checkpoint there", hint="leave resume out to begin it")
    first = damaged[0][1]
    if len(damaged) == 1:
        raise first
    raise CheckpointError(
        f"{folder}: none of its {len(damaged)} checkpoints is whole: "
        + "; ".join(str(e) for _, e in damaged),
        hint=first.hint,
    )


def fetch_newer(recipe: Recipe) -> Iterator[Note]:
    """Fetch the newest whole copy at `train.copy_to` into the run's folder, if that has none so new.

    The best one too, if the folder lacks it. All processes must call it; the main one fetches. Raises
    `ConfigError` if the copies are of another run, and `OutputError`.
    """
    url, folder = recipe.train.copy_to, run_folder(recipe)
    if url is None:
        return
    processes = start_processes(recipe.device, recipe.distributed)
    if processes.is_main:
        copies, own_recipe = CopyFolder(url), folder / RECIPE_FILE
        manifests = sorted(copies.manifests().items(), reverse=True)
        if manifests and own_recipe.exists() and load_recipe(own_recipe).train.copy_to != url:
            raise ConfigError(
                f"train.copy_to: {url}: has checkpoints, and {folder} has not been copied there",
                hint="name a folder of its own: train.copy_to=URL",
            )
        if not manifests:
            yield Note(f"{url}: no checkpoint there")
        own: WholeCheckpoint | None = None
        if list_checkpoints(folder):
            with suppress(CheckpointError):
                own = newest_whole(folder)
        for copy, digests in manifests:
            newest, best = (step_of(own.folder), own.state["standing"]["best_step"]) if own else (None, None)
            lacks_best = copy.step == best and not (folder / "checkpoints" / copy.checkpoint).exists()
            if newest is not None and copy.step <= newest and not lacks_best:
                continue
            # beside a newer checkpoint the run's files stay
            names = [name for name in digests if not (lacks_best and name.startswith(RUN))]
            try:
                copies.fetch(copy, {name: digests[name] for name in names}, folder)
                own = own if lacks_best else newest_whole(folder)
                yield Note(f"fetched {url}/{copy}")
            except CheckpointError as err:
                copies.disown(copy)  # else the same checkpoint, saved again, would pass for copied
                yield Note(f"{copy} is not whole, and is skipped: {err}", is_warning=True)
    processes.wait_for_first()


def restore_run(run: "Run") -> Iterator[Note]:
    """Load the newest whole checkpoint into a run: weights, optimizer, schedule, random numbers, progress.

    The run's files go back to that step too; newer checkpoints, which are damaged, get another name. Yields
    the notes to show. Raises `CheckpointError`.
    """
    found = newest_whole(run.writer.folder)
    last, card, state = found.folder, found.card, found.state
    _require_agreed(run, found)
    if card and card.fingerprint:
        check_base(last, card, run.plan.location.folder)
    if run.pruning is None:
        is_shared = run.processes.shared_by > 1
        if is_shared and not (card and (card.tensors_sha256 or card.weights_sha256)):
            raise CheckpointError(
                f"{last}: saved without hashes of its weights, which shared ones need",
                hint="go on with distributed=ddp; the next checkpoint has them",
            )
        # into files, as when it was saved: no process holds the whole of shared weights
        with run.processes.gathering_in(last.parent), run.processes.whole(is_changed=True):
            if run.is_main or not is_shared:
                restore_trained(run.model, last)
    with as_state(last / STATE_FILE):
        restore_state(state, run.optimizer, run.schedule, run.processes)
        if run.pruning:  # AdaLoRA's state has the weights as well: the adapter's files lack pruned directions
            run.pruning.load_state_dict(state["pruning"])
        run.progress = replace(run.progress, **state["standing"])
        num_processes = len(state["random"])
    if run.pruning:
        require_saved(run.model, last)  # the state's weights are those of the adapter's files
    made, steps = run.progress.step, run.plan.num_steps
    if made > steps:
        raise ConfigError(
            f"{run.writer.folder}: {made} steps are made already, and train.steps is {steps} here",
            hint=f"more than {made}, or begin anew, with another folder: output=FOLDER",
        )
    best = run.progress.best_step
    damage = _damage_of(run.writer.checkpoint_path(best)) if best not in (None, run.progress.step) else ""
    run.processes.wait()  # until all have read what is given another name now
    for path, problem in found.damaged:
        aside = set_aside(path) if run.is_main else path
        yield Note(f"{path.name} is not whole, and is kept as {aside}: {problem}", is_warning=True)
    if run.is_main:
        keep = run.recipe.train.keep_checkpoints
        run.writer.go_back(run.progress.step, keep=keep, best_step=best)
    if damage:
        yield Note(f"the best checkpoint so far is not whole: {damage}", is_warning=True)
    for key, values in run.plan.changed.items():
        yield Note(f"{key}: {values}; recipe.yaml has that now")
    if num_processes != run.processes.number:
        yield Note(
            f"saved by {num_processes} process{'es' * (num_processes > 1)}, gone on with by "
            f"{run.processes.number}: the steps have the same rows; dropout draws other numbers"
        )
    steps_left = f"resumed from {last.name}: {steps - made} of {steps} steps to go"
    changed = _changed_type(card, run.base) if card else "saved without hashes of its files"
    yield Note("; ".join(filter(None, [steps_left, changed, proof_line(check_recorded(card))])))


def _require_agreed(run: "Run", found: WholeCheckpoint) -> None:
    """Raise `CheckpointError` unless all processes have found the same checkpoint."""
    card = found.folder / CARD_FILE
    own = f"{found.folder.name} {hash_file(card)[:12] if found.card else ''}".strip()
    seen = run.processes.gather(own)
    if len(set(seen)) > 1:
        told = ", ".join(f"process {rank} finds {name}" for rank, name in enumerate(seen))
        raise CheckpointError(
            f"{run.writer.folder}: not the same newest whole checkpoint for all processes: {told}",
            hint="the folder must lie on a disk that all machines share, and each must read it whole; a "
            "network disk may show a new file late: the same command again",
        )


def _damage_of(checkpoint: Path) -> str:
    """Return what is not as it was saved in a checkpoint's folder; empty if nothing is, or it is gone."""
    try:
        card = read_card(checkpoint)
        if card:
            require_files(checkpoint, card)
    except CheckpointError as err:
        return str(err)
    return ""


def _changed_type(card: Card, base: Untrained) -> str:
    """Return what is another type from here on than the card's, in words; empty if none is."""
    held, computing = card.dtype, card.computing or card.dtype
    if held not in ("", base.dtype):
        return f"the base was in {held} so far, from here it is in {base.dtype}"
    if computing not in ("", base.computing):
        return f"the base was computed in {computing} so far, from here in {base.computing}"
    return ""
