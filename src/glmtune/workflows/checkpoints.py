"""Save a run's checkpoints, and continue a run from its last one."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from glmtune.adapters.card import Card
from glmtune.adapters.origin import check_base, require_files
from glmtune.adapters.proof import check_recorded, proof_line, recorded_difference
from glmtune.adapters.store import read_card, require_saved, restore_trained, save_trained
from glmtune.files import copy_small_files
from glmtune.load import check_outline
from glmtune.locations import resolve
from glmtune.recipe import TrainedPart
from glmtune.run_files import last_checkpoint, make_folder, replacing
from glmtune.training.state import STATE_FILE, as_state, collect_state, read_state, restore_state, write_state
from glmtune.workflows.cards import Untrained, write_card
from glmtune.workflows.events import Note, Saved

if TYPE_CHECKING:
    from glmtune.workflows.assemble import Run


def save_checkpoint(run: "Run", *, is_best: bool) -> Saved:
    """Save weights, card and training state (optimizer, schedule, random numbers).

    All processes must call it, for each has random numbers of its own.
    """
    # on every process, before the main one writes: the state gathers the random numbers of all
    state = collect_state(run.optimizer, run.schedule, run.processes)
    state["standing"] = asdict(run.progress)  # this key is in the state files of all versions
    if run.pruning:
        state["pruning"] = run.pruning.state_dict()
    plan, step = run.plan, run.progress.step
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
    path, is_whole = run.writer.checkpoint_path(step), run.recipe.method.kept is TrainedPart.MODEL
    with run.processes.whole():  # entered by all, before the main process writes
        if run.is_main:
            make_folder(path.parent)
            with replacing(path) as partial:
                partial.mkdir()
                if is_whole:
                    copy_small_files(plan.location.base, partial)  # full: the checkpoint is a model folder
                write_state(state, partial)
                save_trained(run.model, partial, card)
                if not last_checkpoint(run.writer.folder):
                    # a run's first checkpoint must open again: better an error now than after days
                    check_outline(resolve(partial, base=None if is_whole else plan.location.base))
            # link before pruning: `best` and `last` never point at a folder that is gone
            run.writer.link_checkpoint(step, best_step=run.progress.best_step)
            run.writer.prune(run.recipe.train.keep_checkpoints, best_step=run.progress.best_step)
    run.processes.wait()
    assert card.probe is not None
    return Saved(path, is_best, recorded_difference(card.probe))


def restore_run(run: "Run") -> Note:
    """Load the last checkpoint into a run: weights, optimizer, schedule, random numbers, progress.

    The run's files go back to that step too. Returns the note to show. Raises `CheckpointError`.
    """
    last = last_checkpoint(run.writer.folder)
    assert last is not None
    card = read_card(last)
    # before any weight is read: a missing or cut file is named as such
    if card:
        require_files(last, card)
    if card and card.fingerprint:
        check_base(last, card, run.plan.location.folder)
    if run.pruning is None:
        with run.processes.whole(is_changed=True):
            restore_trained(run.model, last)
    state = read_state(last, step=card.step if card else None, num_processes=run.processes.number)
    with as_state(last / STATE_FILE):
        restore_state(state, run.optimizer, run.schedule, run.processes)
        if run.pruning:  # AdaLoRA's state has the weights as well: the adapter's files lack pruned directions
            run.pruning.load_state_dict(state["pruning"])
        run.progress = replace(run.progress, **state["standing"])
    if run.pruning:
        require_saved(run.model, last)  # the state's weights are those of the adapter's files
    if run.is_main:
        keep = run.recipe.train.keep_checkpoints
        run.writer.go_back(run.progress.step, keep=keep, best_step=run.progress.best_step)
    num_steps = run.plan.num_steps
    steps_left = f"resumed from {last.name}: {num_steps - run.progress.step} of {num_steps} steps to go"
    changed = _changed_type(card, run.base) if card else ""
    return Note("; ".join(filter(None, [steps_left, changed, proof_line(check_recorded(card))])))


def _changed_type(card: Card, base: Untrained) -> str:
    """Return what is another type from here on than the card's, in words; empty if none is."""
    held, computing = card.dtype, card.computing or card.dtype
    if held not in ("", base.dtype):
        return f"the base was in {held} so far, from here it is in {base.dtype}"
    if computing not in ("", base.computing):
        return f"the base was computed in {computing} so far, from here in {base.computing}"
    return ""
